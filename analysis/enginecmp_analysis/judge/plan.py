"""Planning the next run: how many blocks, how many requests in each launch, and how long that takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.enough import LAUNCHES_NEEDED, REQUESTS_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE, Columns
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import LaunchMeans, scenario_kind
from enginecmp_analysis.data.metrics import METRICS, steady_metric
from enginecmp_analysis.data.stamps import NS
from enginecmp_analysis.judge.compare import match
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.power import POWER, launches_to_detect
from enginecmp_analysis.schema.stats import Plan, PlanRow
from enginecmp_analysis.statistics.stationarity import NOTABLE_CORRELATION, correlation
from enginecmp_analysis.statistics.variance import launch_components, optimal_repetitions

Floats = NDArray[np.float64]

MOST_REQUESTS = 1000
"""Past this many requests a launch no longer stands for one moment of the machine."""

GRID = (REQUESTS_NEEDED, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, MOST_REQUESTS)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a block of one engine costs, in seconds: one launch, or one for each cell.

    Attributes:
        launch: process start, load, warm-up, and the pause before the next launch.
        request: one request in every cell.
    """

    launch: float
    request: float


def plan(group: GroupResult, options: Options, detect: float) -> Plan | None:
    """Return the cheapest run that finds a difference of a given size with probability 0.8.

    Variance components of the log ratio (Kalibera & Jones 2013) say what more launches and what more requests
    would bring; the times of the run at hand say what they cost. One number of requests serves all comparisons, so
    every comparison's best number is tried beside a grid, and the cheapest run that satisfies all of them is taken.

    Args:
        group: an analysed group of runs.
        options: as given to `analyse`.
        detect: relative difference to find, e.g. 0.02.

    Returns:
        None when no comparison of the primary metric has the two launches that a variance takes.
    """
    steady = steady_metric(scenario_kind(group.runs[0]))
    metric = group.context.primary_metric or steady
    pairs = group.context.pairs(options.pairs)
    cells: list[Cell | None] = [cell for _, cell, name in group.means if name == metric]
    found = [
        (cell, pair)
        for cell in dict.fromkeys(cells)
        for pair in pairs
        if all((label, cell, metric) in group.means for label in pair)
    ]
    costs = {label: launch_costs(group, label) for label in group.context.engines}
    rows = [row for cell, pair in found if (row := _row(group, metric, steady, cell, pair, costs)) is not None]
    if not rows:
        return None
    alpha = options.alpha / len(rows)
    known = [cost for cost in costs.values() if cost is not None]

    def blocks_at(requests: int) -> int:
        needed = [
            launches_to_detect(math.hypot(row.between, row.within / math.sqrt(requests)), detect, alpha) for row in rows
        ]
        return max(LAUNCHES_NEEDED, *needed)

    def seconds_at(requests: int) -> float:
        return blocks_at(requests) * sum(cost.launch + requests * cost.request for cost in known)

    tried = {*GRID, *(min(MOST_REQUESTS, max(REQUESTS_NEEDED, math.ceil(row.best_requests))) for row in rows)}
    requests = min(sorted(tried), key=seconds_at)
    return Plan(
        scenario=group.context.scenario,
        metric=metric,
        detect=detect,
        blocks=blocks_at(requests),
        requests=requests,
        seconds=seconds_at(requests),
        rows=rows,
    )


def _row(
    group: GroupResult,
    metric: str,
    steady: str,
    cell: Cell | None,
    pair: tuple[str, str],
    costs: dict[str, Costs | None],
) -> PlanRow | None:
    a, b = (group.means[label, cell, metric] for label in pair)
    matched = match(a, b)
    found = matched.of_launches()
    if found.n < 2:
        return None
    # A metric of one value a launch has its requests' times for what happens inside.
    inner = metric if METRICS[metric].per != "launch" else steady
    inside = [_within(group.means[label, cell, inner]) for label in pair if (label, cell, inner) in group.means]
    within2 = sum(variance for variance, _ in inside)
    total2 = float(found.se) ** 2 * found.n * _assurance(float(found.df))
    between2 = max(0.0, total2 - sum(variance / n for variance, n in inside if n))
    cost = [known for label in pair if (known := costs[label]) is not None]
    launch, request = sum(c.launch for c in cost), sum(c.request for c in cost)
    best = optimal_repetitions([within2, between2], [request, launch])[0] if request > 0 and within2 > 0 else 1.0
    return PlanRow(
        cell=cell,
        baseline=pair[0],
        engine=pair[1],
        between=math.sqrt(between2),
        within=math.sqrt(within2),
        best_requests=min(best, float(MOST_REQUESTS)),
    )


def _assurance(df: float) -> float:
    """Return the factor from an estimated variance to one that the truth stays below with probability 0.8.

    Browne 1995: planned on the bare estimate, half of all plans are too small.
    """
    from scipy import special

    return df / float(special.chdtri(df, POWER))


def _within(launches: LaunchMeans) -> tuple[float, float]:
    """Return the relative variance of one value inside a launch, and the values a launch has.

    Correlated values bring less than their number: their variance is scaled up by n / ESS.
    """
    parts = launches.per_launch()
    _, within = launch_components(parts)
    if math.isnan(within):
        return 0.0, 0.0
    related = correlation(parts)
    # Of independent requests too, the estimate of n / ESS is above 1; only what is clearly correlated counts.
    correlated = related.n > 0 and related.lag_one > NOTABLE_CORRELATION / 2
    inflation = related.n / related.effective if correlated else 1.0
    level = float(launches.means.mean())
    # Of log(mean) by the delta method; launches of unequal length by their harmonic mean.
    return within / level**2 * inflation, float(len(launches.counts) / np.sum(1 / launches.counts))


def launch_costs(group: GroupResult, engine: str) -> Costs | None:
    """Return what one block of an engine has cost; None when none of it was measured."""
    found = [cost for run in group.runs for cost in _costs(run.columns, engine)]
    if not found:
        return None
    launches, requests = (np.array(part) for part in zip(*found, strict=True))
    # With a launch for every cell a block takes all of them, and they cost differently.
    each = sum(_launches_a_block(run.columns, engine) for run in group.runs) / len(group.runs)
    if each > 1:
        return Costs(float(launches.mean()) * each, float(requests.mean()) * each)
    return Costs(float(np.median(launches)), float(np.median(requests)))


def _launches_a_block(columns: Columns, engine: str) -> float:
    """Return the launches that an engine has in one of its blocks; 0 without any."""
    if engine not in columns.engines:
        return 0.0
    mine = columns.engine == columns.engines.index(engine)
    blocks = len(np.unique(columns.block[mine]))
    return len(np.unique(columns.launch[mine])) / blocks if blocks else 0.0


def _costs(columns: Columns, engine: str) -> Sequence[tuple[float, float]]:
    """Return (launch, request) seconds of every launch of one engine."""
    if engine not in columns.engines or len(columns) == 0:
        return []
    order = np.lexsort((columns.start_ns, columns.launch))
    starts = np.flatnonzero(np.r_[True, np.diff(columns.launch[order]) != 0])
    begin = columns.start_ns[order][starts]
    # Until the next launch of any engine begins; the last one has no next.
    following = np.sort(begin)
    found = []
    for rows, first in zip(np.split(order, starts[1:]), begin.tolist(), strict=True):
        if columns.engines[int(columns.engine[rows[0]])] != engine:
            continue
        measured = rows[columns.phase[rows] == MEASURE]
        later = following[following > first]
        if len(measured) == 0 or len(later) == 0:
            continue
        window = int(columns.end_ns[measured].max() - columns.start_ns[measured].min())
        rounds = len(measured) / len(np.unique(columns.cell[measured]))
        found.append((max(0.0, (int(later[0]) - first - window) * NS), window * NS / rounds))
    return found
