"""Seconds per component of the model, as the engine itself tells them, held against the wall clock."""

from __future__ import annotations

from enginecmp import clock
from enginecmp.format.phases import Phase
from enginecmp.format.records import COMPONENTS
from enginecmp.launch.launch import LaunchFailure
from enginecmp.measure.task import Task

EXCESS = 1.01
"""Components that add up to more than this much of the wall clock are not believed."""


def measure(task: Task) -> None:
    """Warm up, then profile the cell's prompt and the tokens after it.

    An engine that cannot tell its components apart leaves one error sample; its launch goes on.

    Raises:
        LaunchFailure: the engine crashed or hung, or its components do not fit into the time that passed.
    """
    for phase, wanted in (
        ("warmup", task.scenario.warmup_requests),
        ("measure", task.scenario.requests_in(task.at.cell)),
    ):
        task.at.enter(task.at.cell, phase)  # type: ignore[arg-type] # a literal in a tuple
        while task.at.index < wanted:
            if not _sample(task):
                return
            task.at.index += 1


def _sample(task: Task) -> bool:
    """Profile once and keep the sample; return whether the engine can."""
    at, launch, deadlines = task.at, task.launch, task.scenario.deadlines
    at.start_ns = clock.now_ns()
    steps = at.cell.output_tokens - 1  # the first token is the prompt's
    found = launch.call(
        "profile",
        deadlines.prefill_seconds + deadlines.decode_seconds,
        token_ids=list(task.prompt(at.index)),
        n_tokens=steps,
    )
    if found is None:
        msg = f"{launch.label}: cannot tell its components apart"
        task.keep(at.sample(start_ns=at.start_ns, end_ns=clock.now_ns(), status="error", error=msg))
        return False
    start_ns, end_ns = found["start_ns"], found["end_ns"]
    wall_seconds = (end_ns - start_ns) / 1e9
    validity = task.scenario.validity
    disturbed: dict[str, float] = found.get("metrics", {})
    flags = validity.flags(disturbed, wall_seconds) + task.conditions(start_ns, end_ns)
    metrics = {f"{name}_seconds": found["seconds"][name] for name in COMPONENTS if name in found["seconds"]}
    told = sum(metrics.values())
    if told > EXCESS * wall_seconds:
        msg = f"{launch.label}: its components took {told:.3g} s in all, {wall_seconds:.3g} s passed"
        raise LaunchFailure(msg, status="error", phase=Phase.DECODE)
    # Whatever the engine calls "other", and what it does not see at all.
    metrics["other_seconds"] = max(0.0, wall_seconds - told)
    task.keep(
        at.sample(
            start_ns=start_ns,
            end_ns=end_ns,
            output_tokens=steps + 1,
            status="ok",
            flags=flags,
            metrics={**disturbed, **metrics},
        )
    )
    return True
