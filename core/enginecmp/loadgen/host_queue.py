"""Serve a cell from the host: for engines that are executables and know single requests only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginecmp import clock
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.loadgen.client import Generator
from enginecmp.types import Decoding
from enginecmp.wire.answers import phase_named
from enginecmp.wire.deadlines import Deadlines
from enginecmp.wire.request_intake import RequestIntake, serve_queue
from enginecmp.wire.request_table import FIELDS, Field, Header


def serve_from_here(
    launch: Launch,
    generator: Generator,
    asked: Sequence[tuple[tuple[int, ...], int, Decoding]],
    deadlines: Deadlines,
) -> dict[str, Any]:
    """Queue requests first in, first out, and send the engine one after the other.

    The host wakes between two requests, as it does with one user.

    Args:
        launch: of the engine.
        generator: sends the requests.
        asked: prompt, output tokens and decoding, by number of the request.
        deadlines: of each request.

    Returns:
        `errors` and `metrics_of`, both by number of the request.

    Raises:
        LaunchFailure: the engine crashed or hung.
    """
    table = generator.table
    words = table.words
    intake = RequestIntake(table, generator.arrived, generator.tell, check=generator.check)
    metrics_of: dict[str, dict[str, float]] = {}

    def one(number: int) -> None:
        row = intake.start(number, clock.now_ns())
        try:
            token_ids, output_tokens, decoding = asked[number]
            answer = launch.request(token_ids, output_tokens, deadlines, decoding)
        except LaunchFailure as failure:
            if failure.fatal:
                raise
            intake.fail([number], failure.phase, failure)
            return
        stamps = answer["token_ns"][: table.stamps]
        words[row + Field.START_NS] = answer["start_ns"]
        for place, stamp in enumerate(stamps):
            words[row + FIELDS + place] = stamp
        words[row + Field.MARKED] = len(stamps)
        metrics_of[str(number)] = answer["metrics"]
        if answer["error"] is None:
            intake.finish(number, answer["end_ns"], answer["output_tokens"])
        else:
            where = phase_named(answer.get("where", "decode"))
            intake.fail([number], where, LaunchFailure(answer["error"]["message"], status="error", phase=where))

    intake.open()
    serve_queue(intake, one)
    words[Header.ENDED_NS] = clock.now_ns()
    return {"errors": {str(number): text for number, text in intake.errors.items()}, "metrics_of": metrics_of}
