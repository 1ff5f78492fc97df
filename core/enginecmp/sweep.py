"""A sweep to saturation: find what each engine can do, and fix the rates that all of them are offered.

Rates are absolute and the same for every engine, so that latencies at one rate can be compared in pairs; that is why
they are fixed once, before the first block, from one closed-loop launch per engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from enginecmp.contender import Contender
from enginecmp.errors import CmpError
from enginecmp.plan import PlannedLaunch
from enginecmp.results import LaunchRecord
from enginecmp.scenarios import Scenario
from enginecmp.types import Cell, Sample

CALIBRATION_BLOCK = -1
"""Block of the calibration launches: their prompts are those of no other block."""

_ROUNDS = 2
_SECONDS = 2.0

Drive = Callable[[Scenario, PlannedLaunch, Contender, Callable[[Sample], None]], LaunchRecord]
"""Runs one launch of a scenario and passes its samples on."""


def calibrate(
    scenario: Scenario, contenders: Sequence[Contender], drive: Drive, say: Callable[[str], None]
) -> tuple[Scenario, list[Sample]]:
    """Return the scenario with its rates fixed, and what was measured to fix them.

    An engine whose launch fails is offered nothing, and told.

    Args:
        scenario: with `offered_load`, and cells that say prompt, output and concurrency.
        contenders: the engines.
        drive: runs a launch.
        say: told one line per engine.

    Raises:
        CmpError: no engine could be measured.
    """
    probe = msgspec.structs.replace(
        scenario,
        cells=scenario.cells[:1],
        offered_load=(),
        launch_per_cell=False,
        requests=_ROUNDS * scenario.cells[0].concurrency,
        seconds=_SECONDS,
    )
    samples: list[Sample] = []
    calibration: dict[str, float] = {}
    for order, contender in enumerate(contenders):
        mine: list[Sample] = []
        record = drive(probe, PlannedLaunch(CALIBRATION_BLOCK, order, contender.label), contender, mine.append)
        samples += mine
        found = closed_loop_rate(mine) if record.status == "ok" else 0.0
        calibration[contender.label] = _rounded(found)
        if found:
            say(f"calibration: {contender.label}: {found:.3g} requests/s with {probe.concurrency} in flight")
        else:
            say(f"calibration: {contender.label}: left out: {record.error or 'no request was answered'}")
    able = [rate for rate in calibration.values() if rate]
    if not able:
        msg = f"scenario {scenario.name}: no engine answered a request in its calibration launch; the reasons are above"
        raise CmpError(msg)
    cells = tuple(
        Cell(cell.prompt_tokens, cell.output_tokens, cell.concurrency, scenario.arrival, rate)
        for cell in scenario.cells
        for rate in sweep_rates(able, scenario.offered_load)
    )
    return msgspec.structs.replace(scenario, cells=cells, calibration=calibration), samples


def closed_loop_rate(samples: Sequence[Sample]) -> float:
    """Return requests per second while the load was full: from the first to the last measured request sent.

    What ends in that time is counted, warm-up requests included, because all users are busy throughout. Where nothing
    but one round was sent, its requests are counted over the time until the last of them ends.
    """
    answered = [sample for sample in samples if sample.status == "ok" and sample.phase != "load"]
    measured = [sample for sample in answered if sample.phase == "measure"]
    if not measured:
        return 0.0
    first, last = min(s.intended_ns for s in measured), max(s.intended_ns for s in measured)
    ended = sum(first < sample.end_ns <= last for sample in answered)
    if ended >= measured[0].cell.concurrency:
        return ended / (last - first) * 1e9
    return len(measured) / (max(sample.end_ns for sample in measured) - first) * 1e9


def sweep_rates(capacities: Sequence[float], multiples: Sequence[float]) -> list[float]:
    """Return the rates of a sweep, rising, rounded to three digits.

    One engine is offered the multiples of what it can do. Several share a geometric grid from the smallest multiple
    of the slowest to the largest of the fastest, as dense as the multiples are, of at most twice as many rates.

    Args:
        capacities: requests per second of each engine, above 0.
        multiples: of the scenario.
    """
    low, high = min(multiples), max(multiples)
    slowest, fastest = min(capacities), max(capacities)
    if len(multiples) == 1 or slowest == fastest:
        return sorted({_rounded(multiple * capacity) for multiple in multiples for capacity in capacities})
    density = math.log(high / low) / (len(multiples) - 1)
    span = math.log(high * fastest / (low * slowest))
    steps = min(2 * len(multiples) - 1, math.ceil(span / density - 1e-9))
    return sorted({_rounded(low * slowest * math.exp(span * step / steps)) for step in range(steps + 1)})


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def described(scenario: Scenario) -> list[str]:
    """Return what to tell people of the rates of a sweep: all of them, and who is spared which."""
    rates = sorted({cell.rate_per_second for cell in scenario.cells if cell.rate_per_second})
    lines = [f"sweep: {', '.join(f'{rate:g}' for rate in rates)} requests/s, {scenario.arrival} arrivals"]
    for label in scenario.calibration:
        spared = [f"{c.rate_per_second:g}" for c in scenario.cells if not scenario.offered(c, label)]
        if spared and len(spared) < len(scenario.cells):
            limit = f"{scenario.offered_limit:g} × its own {scenario.calibration[label]:g}/s"
            lines.append(f"sweep: {label} is not offered {', '.join(spared)}: more than {limit}")
    return lines
