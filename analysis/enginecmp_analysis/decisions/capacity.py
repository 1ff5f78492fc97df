"""How much one machine serves at the SLO, how many machines a demand takes, and whether the budget pays for them.

Every answer is an interval between what is proven to be kept and what is proven to be broken, among the loads that
were measured; nothing is said of loads beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order, is_open, load_name
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.data.launches import Block, scenario_kind
from enginecmp_analysis.decisions.money import price_of
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.decisions.slo import Kept, Objective, failed_requests, keeps
from enginecmp_analysis.schema.decisions import Capacity, CapacityRow
from enginecmp_analysis.statistics.student import positive_interval

EPSILON = 1e-9
"""Demand / rate that is a whole number but for rounding is that number."""


@dataclass(frozen=True, slots=True)
class Need:
    """What is asked.

    Attributes:
        objectives: the SLO: all of them must be kept.
        demand_per_second: requests per second; None asks only for the rate of one machine.
        budget_per_hour: what may be spent; None for no limit.
        prices: of machines; None without money.
    """

    objectives: Sequence[Objective]
    demand_per_second: float | None = None
    budget_per_hour: float | None = None
    prices: Prices | None = None


class Point(NamedTuple):
    """One measured load.

    Attributes:
        cell: its cell.
        state: whether all objectives are kept, one is broken, or neither is proven.
        rate_low: requests per second at this load, lower limit; NaN when unknown.
        rate_high: upper limit.
        advice: what would tell, where the state is open.
    """

    cell: Cell
    state: Literal["kept", "broken", "open"]
    rate_low: float
    rate_high: float
    advice: str


def capacity(analysis: Analysis, need: Need) -> Capacity:
    """Answer "which engine, how many machines".

    Raises:
        UsageError: the price file has no price for an engine.
    """
    report = Capacity(
        slo=[str(objective) for objective in need.objectives],
        demand_per_second=need.demand_per_second,
        budget_per_hour=need.budget_per_hour,
        currency=need.prices.currency if need.prices else "",
        rows=[],
        choices=[],
    )
    for group in analysis.groups:
        if scenario_kind(group.runs[0]) != "requests":
            continue
        by_shape: dict[tuple[object, ...], list[CapacityRow]] = {}
        failed = failed_requests(group.runs)
        for engine in group.context.engines:
            if engine in group.context.not_comparable:
                continue
            for shape, cells in _shapes(group, engine, failed).items():
                points = [_point(group, engine, cell, need.objectives, failed) for cell in cells]
                by_shape.setdefault(shape, []).append(_row(group, engine, points, need))
        for rows in by_shape.values():
            report.rows += rows
            if len(rows) > 1:
                report.choices.append(_choice(rows, need))
    return report


Failed = Mapping[tuple[str, Cell], Mapping[Block, int]]


def _shapes(group: GroupResult, engine: str, failed: Failed) -> dict[tuple[object, ...], list[Cell]]:
    """Return the cells of an engine that differ in load alone, the lightest load first."""
    cells = {cell for of, cell, _ in group.means if of == engine and cell is not None}
    cells |= {cell for of, cell in failed if of == engine}
    shapes: dict[tuple[object, ...], list[Cell]] = {}
    for cell in sorted(cells, key=cell_order):
        # A recorded trace has no single rate, an imported cell perhaps no known concurrency.
        if (is_open(cell) and not cell.rate_per_second) or not (is_open(cell) or cell.concurrency):
            continue
        shape = (cell.prompt_tokens, cell.output_tokens, cell.variant, cell.workload, cell.arrival)
        shapes.setdefault(shape, []).append(cell)
    return {
        shape: sorted(cells, key=lambda cell: (cell.rate_per_second or 0.0, cell.concurrency))
        for shape, cells in shapes.items()
    }


def _point(group: GroupResult, engine: str, cell: Cell, objectives: Sequence[Objective], failed: Failed) -> Point:
    found = [(objective, _kept(group, engine, cell, objective, failed)) for objective in objectives]
    low, high = _rate(group, engine, cell)
    broken = any(kept.state == "broken" for _, kept in found)
    state: Literal["kept", "broken", "open"] = "broken" if broken else "open"
    if all(kept.state == "kept" for _, kept in found):
        state = "kept"
    advice = "; ".join(_advice(objective, kept) for objective, kept in found if kept.state == "open")
    return Point(cell, state, low, high, advice if state == "open" else "")


def _kept(group: GroupResult, engine: str, cell: Cell, objective: Objective, failed: Failed) -> Kept:
    launches = group.means.get((engine, cell, objective.metric))
    lost = dict(failed.get((engine, cell), {}))
    parts = []
    if launches is not None:
        parts = [
            np.r_[part, np.full(lost.pop(block, 0), np.inf)]
            for block, part in zip(launches.blocks, launches.per_launch(), strict=True)
        ]
    return keeps([*parts, *(np.full(n, np.inf) for n in lost.values())], objective.quantile, objective.limit)


def _advice(objective: Objective, kept: Kept) -> str:
    if not kept.n:
        return f"{objective.metric} was not measured"
    if kept.launches_differ:
        return f"launches differ too much in {objective}: measure more launches"
    if kept.needed is not None and kept.needed > kept.n:
        return f"{objective} takes {kept.needed} requests, {kept.n} were measured: {kept.needed - kept.n} more"
    return f"{kept.slow} of {kept.n} requests exceed {objective}, about as many as it allows: more may not decide it"


def _rate(group: GroupResult, engine: str, cell: Cell) -> tuple[float, float]:
    """Return the limits of requests per second: the offered rate of an open loop, a t interval of a closed one."""
    if is_open(cell):
        return float(cell.rate_per_second or 0), float(cell.rate_per_second or 0)
    launches = group.means.get((engine, cell, "requests_per_second"))
    if launches is None or len(launches.means) < 2:
        return math.nan, math.nan
    _, low, high = positive_interval(launches.replicates())
    return low, high


def _row(group: GroupResult, engine: str, points: Sequence[Point], need: Need) -> CapacityRow:
    cell = points[0].cell
    low, high = bounds(points)
    row = CapacityRow(
        scenario=group.context.scenario,
        engine=engine,
        prompt_tokens=cell.prompt_tokens,
        output_tokens=cell.output_tokens,
        loop="open" if is_open(cell) else "closed",
        arrival=cell.arrival or None,
        rate_low=low,
        rate_high=high,
        measure=list(_measure(points, low, high)),
    )
    price = price_of(group, engine, need.prices) if need.prices else None
    if need.demand_per_second is not None:
        _machines(row, need.demand_per_second, price, need.budget_per_hour)
    elif need.budget_per_hour is not None and price is not None:
        row.budget_machines = math.floor(need.budget_per_hour / price + EPSILON)
        row.budget_rate = row.budget_machines * low if low is not None else None
    row.answer = _answer(row, need, price)
    return row


def bounds(points: Sequence[Point]) -> tuple[float | None, float | None]:
    """Return the rate that is proven to be kept, and the one that is proven broken; None where there is none.

    Loads above the first broken one prove nothing: the lower limit is the largest rate kept below it. In a closed
    loop the load is the number of users and a heavier load may yield no higher rate, so the upper limit is the
    largest that any load up to the first broken one reached.

    Args:
        points: of one engine and length of requests, the lightest load first.
    """
    broken = next((i for i, point in enumerate(points) if point.state == "broken"), None)
    below = points if broken is None else points[:broken]
    kept = [point.rate_low for point in below if point.state == "kept" and point.rate_low > 0]
    reached = [] if broken is None else [point.rate_high for point in points[: broken + 1]]
    known = [rate for rate in reached if math.isfinite(rate)]
    return (max(kept) if kept else None), (max(known) if known else None)


def _measure(points: Sequence[Point], low: float | None, high: float | None) -> Iterator[str]:
    """Yield what would narrow the interval."""
    opened = is_open(points[0].cell)
    loads = "rates" if opened else "numbers of users"
    states = [point.state for point in points]
    first_broken = states.index("broken") if "broken" in states else None
    below = list(points if first_broken is None else points[:first_broken])
    yield from (f"{load_name(point.cell)}: {point.advice}" for point in below if point.state == "open")
    if first_broken is not None and any(point.state == "kept" for point in points[first_broken:]):
        yield f"a heavier load keeps the SLO than one that breaks it ({load_name(points[first_broken].cell)}): repeat"
    if first_broken == 0:
        yield f"{loads} below {load_name(points[0].cell)}: the lightest load measured breaks the SLO"
    elif first_broken is not None and below[-1].state == "kept":
        between = f"{load_name(below[-1].cell)} and {load_name(points[first_broken].cell)}"
        yield f"{loads} between {between}"
    elif first_broken is None and states[-1] == "kept":
        yield f"heavier loads: {load_name(points[-1].cell)} is the heaviest measured, and it keeps the SLO"
    if not opened and low is not None:
        yield "an open loop: users who wait for answers hide the queue that arrivals at this rate would form"


def _machines(row: CapacityRow, demand: float, price: float | None, budget: float | None) -> None:
    if row.rate_low is not None:
        row.machines_high = machines(demand, row.rate_low)
    if row.rate_high is not None:
        row.machines_low = machines(demand, row.rate_high)
    elif row.machines_high == 1:
        row.machines_low = 1
    if price is None:
        return
    row.cost_low = row.machines_low * price if row.machines_low is not None else None
    row.cost_high = row.machines_high * price if row.machines_high is not None else None
    if budget is None:
        return
    # Less than one machine cannot be had, whatever its rate.
    least = row.cost_low if row.cost_low is not None else price
    if row.cost_high is not None and row.cost_high <= budget * (1 + EPSILON):
        row.fits = "yes"
    else:
        row.fits = "no" if least > budget * (1 + EPSILON) else "cannot tell"


def machines(demand: float, rate: float) -> int:
    """Return how many machines a demand takes if each sustains `rate`; the load is split evenly among them."""
    return max(1, math.ceil(demand / rate - EPSILON))


def _answer(row: CapacityRow, need: Need, price: float | None) -> str:
    """Return the row in words."""
    if row.rate_low is None and row.rate_high is None:
        rate = "the data cannot tell what a machine sustains"
    elif row.rate_low is None:
        rate = f"no measured load is proven to keep the SLO; {row.rate_high:.4g}/s breaks it"
    elif row.rate_high is None:
        rate = f"at least {row.rate_low:.4g} requests/s a machine; more was not measured"
    else:
        rate = f"{row.rate_low:.4g} to {row.rate_high:.4g} requests/s a machine"
    parts = [rate]
    if need.demand_per_second is not None:
        parts.append(_count_words(row))
        if row.cost_high is not None:
            span = _span(row.cost_low, row.cost_high)
            parts.append(f"{span} {need.prices.currency if need.prices else ''}/h".replace(" /h", "/h"))
        if row.fits is not None:
            parts.append({"yes": "fits the budget", "no": "beyond the budget"}.get(row.fits, _CANNOT_TELL_BUDGET))
    elif row.budget_machines is not None:
        bought = f"the budget buys {row.budget_machines} machine{'' if row.budget_machines == 1 else 's'}"
        parts.append(bought + (f": at least {row.budget_rate:.4g} requests/s" if row.budget_rate else ""))
    return "; ".join(parts)


_CANNOT_TELL_BUDGET = "the data cannot tell whether the budget pays for it"


def _count_words(row: CapacityRow) -> str:
    low, high = row.machines_low, row.machines_high
    if high is None:
        return "how many machines: the data cannot tell" + (f" ({low} or more)" if low is not None else "")
    if low is None:
        return f"at most {high} machines"
    if low == high:
        return f"{high} machine{'' if high == 1 else 's'}"
    return f"{low} to {high} machines: the data cannot tell"


def _span(low: float | None, high: float) -> str:
    if low is None:
        return f"at most {high:.2f}"
    return f"{high:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _choice(rows: Sequence[CapacityRow], need: Need) -> str:
    """Return which engine to take for one length of requests: the one proven no costlier than any other can be."""
    place = f"{rows[0].scenario}, {shape_name(rows[0])}"
    priced = need.prices is not None
    if need.budget_per_hour is not None and priced and all(row.fits == "no" for row in rows):
        return f"{place}: no engine serves the demand within the budget"

    def worst(row: CapacityRow) -> float:
        if need.demand_per_second is None:
            return -(_or(row.budget_rate, 0.0) if row.budget_machines is not None else _or(row.rate_low, 0.0))
        return _or(row.cost_high if priced else row.machines_high, math.inf)

    def best(row: CapacityRow) -> float:
        if need.demand_per_second is None:
            return -_or(row.rate_high, math.inf) * _or(row.budget_machines, 1)
        # Without an upper limit of the rate one machine might do.
        price = (row.cost_high or 0) / row.machines_high if priced and row.machines_high else 0.0
        return _or(row.cost_low if priced else row.machines_low, price if priced else 1)

    candidates = [row for row in rows if row.fits != "no"] or list(rows)
    chosen = min(candidates, key=worst)
    if not math.isfinite(worst(chosen)) or worst(chosen) == 0:
        return f"{place}: the data cannot tell which engine: no load is proven to keep the SLO"
    others = [row.engine for row in candidates if row is not chosen and best(row) < worst(chosen)]
    if others:
        return f"{place}: the data cannot tell {chosen.engine} from {', '.join(others)}"
    alike = [row.engine for row in candidates if row is not chosen and worst(row) == worst(chosen)]
    return f"{place}: {' or '.join([chosen.engine, *alike])}"


def shape_name(row: CapacityRow) -> str:
    """Return the length of the requests that an answer is about, and how they arrive."""
    kind = f"{row.arrival} arrivals" if row.arrival else "closed loop"
    return f"prompt {row.prompt_tokens} → output {row.output_tokens} tokens, {kind}"


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else float(value)
