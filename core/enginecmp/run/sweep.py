"""A sweep to saturation: find what each engine can do, and fix the rates that all of them are offered.

Rates are absolute and the same for every engine, so that latencies at one rate can be compared in pairs; that is why
they are fixed once, before the first block, from one closed-loop launch per engine. An engine to which the shared rates
do not do justice gets further ones of its own, because a capacity takes three rates, the largest beyond it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from enginecmp.errors import CmpError
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch

CALIBRATION_BLOCK = -1
"""Block of the calibration launches: their prompts are those of no other block."""

LEAST_RATES = 3
"""Fewer rates are no sweep: the analysis gives no capacity (`enginecmp_analysis.data.sweep.LEAST_RATES`)."""

_NEAR = 0.9
"""A shared rate that is this share of an engine's own largest one stands in for it."""

_ROUNDS = 2
_SECONDS = 2.0

Drive = Callable[[Scenario, PlannedLaunch, EngineConfig, Callable[[Sample], None]], LaunchRecord]
"""Runs one launch of a scenario and passes its samples on."""


def calibrate(
    scenario: Scenario, configs: Sequence[EngineConfig], drive: Drive, say: Callable[[str], None]
) -> tuple[Scenario, list[Sample]]:
    """Return the scenario with its rates fixed, and what was measured to fix them.

    An engine whose launch fails is offered nothing, and told.

    Args:
        scenario: with `offered_load`, and cells that say prompt, output and concurrency.
        configs: the engines.
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
    for order, config in enumerate(configs):
        mine: list[Sample] = []
        record = drive(probe, PlannedLaunch(CALIBRATION_BLOCK, order, config.label), config, mine.append)
        samples += mine
        found = closed_loop_rate(mine) if record.status == "ok" else 0.0
        calibration[config.label] = _rounded(found)
        if found:
            say(f"calibration: {config.label}: {found:.3g} requests/s with {probe.concurrency} in flight")
        else:
            say(f"calibration: {config.label}: left out: {record.error or 'no request was answered'}")
    able = [rate for rate in calibration.values() if rate]
    if not able:
        msg = f"scenario {scenario.name}: no engine answered a request in its calibration launch; the reasons are above"
        raise CmpError(msg)
    shared = sweep_rates(able, scenario.offered_load)
    rates = {
        label: rates_for(capacity, shared, scenario.offered_load, scenario.offered_limit) if capacity else []
        for label, capacity in calibration.items()
    }
    cells = tuple(
        Cell(cell.prompt_tokens, cell.output_tokens, cell.concurrency, scenario.arrival, rate)
        for cell in scenario.cells
        for rate in sorted({rate for own in rates.values() for rate in own})
    )
    offered = {
        label: tuple(number for number, cell in enumerate(cells) if cell.rate_per_second in own)
        for label, own in rates.items()
    }
    return msgspec.structs.replace(scenario, cells=cells, calibration=calibration, offered_cells=offered), samples


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


def rates_for(capacity: float, shared: Sequence[float], multiples: Sequence[float], limit: float) -> list[float]:
    """Return the rates that one engine is offered, rising.

    The shared ones up to the limit; where these are fewer than three, or the largest of them is not the largest that
    the engine is to be offered, further ones of its own: multiples of what it can do, evenly spread in logs.

    Args:
        capacity: requests per second of the engine, above 0.
        shared: from `sweep_rates`.
        multiples: of the scenario.
        limit: multiple beyond which an engine is offered nothing.
    """
    top = min(max(multiples), limit)
    low = min(multiples) if min(multiples) < top else top / 2
    # Rates are rounded to three digits: the limit itself must not fall out by that.
    rates = [rate for rate in shared if rate <= 1.005 * limit * capacity]
    if not rates or rates[-1] < _NEAR * top * capacity:
        rates.append(_rounded(top * capacity))
    steps = [low * (top / low) ** (step / (LEAST_RATES - 1)) for step in range(LEAST_RATES)]
    for step in (steps[1], steps[0]):
        if len(rates) < LEAST_RATES and _rounded(step * capacity) not in rates:
            rates.append(_rounded(step * capacity))
    return sorted(rates)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def described(scenario: Scenario) -> list[str]:
    """Return what to tell people of the rates of a sweep: all of them, and who is spared which."""
    rates = sorted({cell.rate_per_second for cell in scenario.cells if cell.rate_per_second})
    lines = [f"sweep: {', '.join(f'{rate:g}' for rate in rates)} requests/s, {scenario.arrival} arrivals"]
    for label in scenario.calibration:
        own = [f"{c.rate_per_second:g}" for c in scenario.cells if scenario.offered(c, label)]
        if own and len(own) < len(scenario.cells):
            why = f"at most {scenario.offered_limit:g} × its own {scenario.calibration[label]:g}/s"
            lines.append(f"sweep: {label} is offered {', '.join(dict.fromkeys(own))}: {why}")
    return lines
