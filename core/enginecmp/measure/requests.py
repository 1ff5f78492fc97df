"""Requests one after the other: prompt in, tokens out, the next when the last is over."""

from __future__ import annotations

import time

from enginecmp import clock
from enginecmp.format.flags import DISTURBED, Flag
from enginecmp.format.records import Sample
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure.task import Task

_ERRORS_IN_A_ROW = 3
"""After that many refused requests the rest of a launch would only repeat the message."""


def measure(task: Task) -> None:
    """Warm up, then measure one cell with one user.

    Raises:
        LaunchFailure: the engine crashed, hung, or refused several requests in a row.
    """
    cell = task.at.cell
    task.at.enter(cell, "warmup")
    _requests(task)
    task.at.enter(cell, "measure")
    _requests(task)


def _requests(task: Task) -> None:
    """Run the requests of one phase, by number or by time.

    A request that the rest of the machine disturbed is followed by a replacement while there are any.
    """
    scenario, at = task.scenario, task.at
    measuring = at.phase == "measure"
    wanted = scenario.requests_in(at.cell) if measuring else scenario.warmup_requests
    replacements = scenario.replacement_requests if measuring else 0
    until = time.monotonic() + (scenario.seconds or 0.0) if measuring else 0.0
    # Cut before the first request, so that the engine does not wait for the host between two of them.
    ready = [task.prompt(index) for index in range(wanted)]
    failures = 0
    while at.index < wanted or time.monotonic() < until:
        token_ids = ready[at.index] if at.index < len(ready) else task.prompt(at.index)
        at.start_ns = clock.now_ns()
        sample = request(task, token_ids)
        task.keep(sample)
        failures = failures + 1 if sample.status != "ok" else 0
        if failures == _ERRORS_IN_A_ROW:
            msg = f"{sample.error} ({failures} requests in a row)"
            raise LaunchFailure(msg, status="error", phase=task.launch.progress()[0])
        at.index += 1
        if replacements and not set(DISTURBED).isdisjoint(sample.flags):
            replacements -= 1
            wanted += 1


def request(task: Task, token_ids: tuple[int, ...]) -> Sample:
    """Run one request and return its sample, flags included.

    Raises:
        LaunchFailure: the worker is gone.
    """
    launch, at, scenario = task.launch, task.at, task.scenario
    try:
        answer = launch.request(token_ids, at.cell.output_tokens, scenario.deadlines)
    except LaunchFailure as failure:
        if failure.fatal:
            raise
        # The engine refused this prompt before the clock started (a round trip that fails, say).
        return at.sample(start_ns=at.start_ns, end_ns=clock.now_ns(), status="error", error=str(failure))
    error = answer["error"]
    metrics: dict[str, float] = answer["metrics"]
    wall_seconds = (answer["end_ns"] - answer["start_ns"]) / 1e9
    flags = scenario.validity.flags(metrics, wall_seconds)
    flags += task.conditions(answer["start_ns"], answer["end_ns"])
    if error is None and answer["output_tokens"] != at.cell.output_tokens:
        flags.append(Flag.SHORT_OUTPUT if answer["output_tokens"] < at.cell.output_tokens else Flag.LONG_OUTPUT)
    return at.sample(
        start_ns=answer["start_ns"],
        end_ns=answer["end_ns"],
        token_ns=answer["token_ns"],
        output_tokens=answer["output_tokens"],
        status="ok" if error is None else "error",
        error=None if error is None else f"{launch.label}: in {answer.get('where', 'decode')}: {error['message']}",
        flags=flags,
        metrics=metrics,
    )
