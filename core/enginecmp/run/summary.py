"""How a run that is about to start is told: in one line, or launch by launch."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from enginecmp.run.estimate import duration, time_range
from enginecmp.run.guess import gate_seconds
from enginecmp.run.request import RunRequest
from enginecmp.scenarios.fit import describe
from enginecmp.scenarios.plan import PlannedLaunch, plan_launches


def headline(request: RunRequest) -> str:
    """Return one line about a run."""
    scenario = request.scenario
    labels = ", ".join(request.labels)
    if not scenario.blocks:
        return f"{labels} on {request.model.name}, quality only"
    length = f"{scenario.seconds:g} s" if scenario.seconds else count(scenario.requests, "request")
    threads = count(request.configs[0].options.threads, "thread")
    blocks = count(scenario.blocks, "block")
    return (
        f"{labels} on {request.model.name}, {scenario.name}/{scenario.profile}, {blocks} × {length}, {threads}"
        f"{_queueing(request)}"
    )


def count(number: int, noun: str) -> str:
    """Return a number and its noun: "1 block", "10 blocks"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _queueing(request: RunRequest) -> str:
    """Return which engines have no batching of their own, where that makes a difference."""
    if request.scenario.concurrency == 1:
        return ""
    queueing = [config.label for config in request.configs if not config.plugin.batches]
    if not queueing:
        return ""
    return f"; {' and '.join(queueing)} queue{'s' if len(queueing) == 1 else ''} requests first in, first out"


def plan_lines(
    request: RunRequest, seconds: float, basis: str, over: Collection[tuple[int, str, int | None]] = ()
) -> Iterator[str]:
    """Yield the order of all launches and how long they will take, line by line.

    Args:
        request: of the run.
        seconds: that its launches will take.
        basis: what that rests on.
        over: keys of launches that are over, of a run that goes on; they are left out.
    """
    scenario = request.scenario
    gated = request.reference is not None
    yield headline(request)
    state = "on" if gated else "done" if scenario.gate else "off"
    yield f"seed {request.seed}, baseline {request.baseline}, gate {state}"
    for cell in scenario.cells:
        yield f"cell: {describe(cell)}"
    if scenario.offered_load:
        loads = ", ".join(f"{load:g}" for load in scenario.offered_load)
        yield f"sweep: {scenario.arrival} arrivals at {loads} × what one launch of each engine shows beforehand"
    left = launches_left(request, over)
    for block in dict.fromkeys(planned.block for planned in left):
        order = "  ".join(planned.name.partition("-")[2] for planned in left if planned.block == block)
        yield f"block {block + 1:>3}: {order}"
    takes = time_range(seconds, scenario.max_extra)
    most = duration(gate_seconds(scenario, request.model, request.everybody))
    gate = f", and the gate before them, at most {most} or so" if gated else ""
    yield f"about {takes} of launches ({basis}){gate}"


def launches_left(request: RunRequest, over: Collection[tuple[int, str, int | None]]) -> list[PlannedLaunch]:
    """Return the planned launches of a run that are not over, in their order."""
    scenario = request.scenario
    cells = len(scenario.cells) if scenario.launch_per_cell else None
    plan = plan_launches([config.label for config in request.configs], scenario.blocks, request.seed, cells)
    return [planned for planned in plan if planned.key not in over]
