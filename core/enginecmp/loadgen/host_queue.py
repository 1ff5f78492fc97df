"""Serve a cell from the host: for engines that are executables and know single requests only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginecmp import clock
from enginecmp.deadlines import Deadlines
from enginecmp.launch import Launch, LaunchFailure
from enginecmp.loadgen.board import FIELDS, Field, Header
from enginecmp.loadgen.client import Generator
from enginecmp.loadgen.desk import Desk, serve_queue


def serve_from_here(
    launch: Launch,
    generator: Generator,
    prompts: Sequence[tuple[int, ...]],
    output_tokens: int,
    deadlines: Deadlines,
) -> dict[str, Any]:
    """Queue requests first in, first out, and send the engine one after the other.

    The host wakes between two requests, as it does with one user.

    Returns:
        `errors` and `metrics_of`, both by number of the request.

    Raises:
        LaunchFailure: the engine crashed or hung.
    """
    board = generator.board
    words = board.words
    desk = Desk(board, generator.arrived, generator.tell, check=generator.check)
    metrics_of: dict[str, dict[str, float]] = {}

    def one(number: int) -> None:
        row = desk.start(number, clock.now_ns())
        try:
            answer = launch.request(prompts[number], output_tokens, deadlines)
        except LaunchFailure as failure:
            if failure.fatal:
                raise
            desk.fail([number], failure.phase, failure)
            return
        stamps = answer["token_ns"]
        words[row + Field.START_NS] = answer["start_ns"]
        for place, stamp in enumerate(stamps):
            words[row + FIELDS + place] = stamp
        words[row + Field.MARKED] = len(stamps)
        metrics_of[str(number)] = answer["metrics"]
        if answer["error"] is None:
            desk.finish(number, answer["end_ns"], answer["output_tokens"])
        else:
            desk.fail([number], answer["where"], LaunchFailure(answer["error"]["message"], status="error", phase=""))

    desk.open()
    serve_queue(desk, one)
    words[Header.ENDED_NS] = clock.now_ns()
    return {"errors": {str(number): text for number, text in desk.errors.items()}, "metrics_of": metrics_of}
