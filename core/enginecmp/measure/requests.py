"""Requests one after the other: prompt in, tokens out, the next when the last is over."""

from __future__ import annotations

import time

from enginecmp import clock
from enginecmp.format.flags import DISTURBED
from enginecmp.format.records import Sample
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure.planned import Planned, again, planned
from enginecmp.measure.structured import structured_metrics
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
    workload = scenario.workload(at.cell)
    # What is said or cached before a turn cannot be had again for another one in its place.
    alone = workload is None or not (workload.has_turns or workload.shared_prefix_tokens)
    replacements = scenario.replacement_requests if measuring and alone else 0
    until = time.monotonic() + (scenario.seconds or 0.0) if measuring else 0.0
    # Cut before the first request, so that the engine does not wait for the host between two of them.
    ready = planned(task, wanted)
    failures = 0
    while at.index < wanted or time.monotonic() < until:
        if at.index == len(ready):
            ready.append(again(task, at.index, ready[0]))
        if ready[at.index].think_seconds:
            time.sleep(ready[at.index].think_seconds)
        at.start_ns = clock.now_ns()
        sample = request(task, ready[at.index])
        task.keep(sample)
        failures = failures + 1 if sample.status != "ok" else 0
        if failures == _ERRORS_IN_A_ROW:
            msg = f"{sample.error} ({failures} requests in a row)"
            raise LaunchFailure(msg, status="error", phase=task.launch.progress()[0])
        if replacements and not set(DISTURBED).isdisjoint(sample.flags):
            replacements -= 1
            # Of the same lengths as the one that it stands for, and with its number: other engines did that one.
            if wanted == len(ready):
                ready.append(again(task, wanted, ready[at.index]))
            wanted += 1
        at.index += 1


def request(task: Task, asked: Planned) -> Sample:
    """Run one request and return its sample, flags included.

    Raises:
        LaunchFailure: the worker is gone.
    """
    launch, at, scenario = task.launch, task.at, task.scenario
    try:
        answer = launch.request(asked.token_ids, asked.output_tokens, scenario.deadlines, asked.decoding)
    except LaunchFailure as failure:
        if failure.fatal:
            raise
        # The engine refused this prompt before the clock started (a round trip that fails, say).
        return at.sample(
            start_ns=at.start_ns,
            end_ns=clock.now_ns(),
            prompt_tokens=len(asked.token_ids),
            status="error",
            error=str(failure),
            asked=asked.asked,
        )
    error = answer["error"]
    metrics: dict[str, float] = answer["metrics"]
    wall_seconds = (answer["end_ns"] - answer["start_ns"]) / 1e9
    flags = scenario.validity.flags(metrics, wall_seconds)
    flags += task.conditions(answer["start_ns"], answer["end_ns"])
    if error is None:
        flags += asked.length_flags(answer["output_tokens"])
        metrics = metrics | structured_metrics(task, asked, answer)
    return at.sample(
        start_ns=answer["start_ns"],
        end_ns=answer["end_ns"],
        token_ns=answer["token_ns"],
        prompt_tokens=len(asked.token_ids),
        output_tokens=answer["output_tokens"],
        status="ok" if error is None else "error",
        error=None if error is None else f"{launch.label}: in {answer.get('where', 'decode')}: {error['message']}",
        flags=flags,
        metrics=metrics,
        asked=asked.asked,
    )
