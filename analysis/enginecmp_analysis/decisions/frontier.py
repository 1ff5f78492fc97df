"""Who is on the frontier of speed, memory and quality, over several models and settings at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import msgspec
import numpy as np

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.metrics import metric_of
from enginecmp_analysis.decisions.pareto import MEMORY, NORMAL_DF, QUALITY, Advantage, dominated
from enginecmp_analysis.decisions.quality import quality_rows, worse_than_reference
from enginecmp_analysis.judge.judge import least_requests
from enginecmp_analysis.statistics.student import t_quantile


class Value(msgspec.Struct, frozen=True):
    """One number of a point, with 95 % limits."""

    mean: float
    low: float
    high: float


class FrontierRow(msgspec.Struct, kw_only=True):
    """One model and engine in one cell.

    Attributes:
        scenario: of the runs.
        cell: point of the grid.
        metric: the primary one, which speed is told by.
        model: name.
        engine: label.
        speed: geometric mean over launches.
        memory: peak above the empty process, bytes; null where it was not measured.
        lost_nats: nats a token more than the float32 reference's on the bundled text; null likewise.
        n_launches: behind speed.
        dominated_by: "MODEL, ENGINE" that is shown to be no worse in anything and better in something; else empty.
        better_in: what that one is better in.
        p_adjusted: of that, by Holm over all ordered pairs of the cell; null where nothing dominates.
    """

    scenario: str
    cell: Cell
    metric: str
    model: str
    engine: str
    speed: Value
    memory: Value | None = None
    lost_nats: Value | None = None
    n_launches: int = 0
    dominated_by: str = ""
    better_in: list[str] = []
    p_adjusted: float | None = None


class _Logs(NamedTuple):
    """Mean of log launch means, its standard error, and launches."""

    mean: float
    se: float
    n: int


class _Point(NamedTuple):
    row: FrontierRow
    values: dict[str, _Logs]


def frontier(groups: Sequence[GroupResult], margin: float = 0.03, alpha: float = 0.05) -> list[FrontierRow]:
    """Return every comparable point of runs that measured one scenario on several models or with several settings.

    Runs of different models share no blocks, so points are compared unpaired: Welch's t on log launch means. A
    dominates B where A is shown to be no worse than B by more than the margin in everything that both have (every
    one-sided p must pass) and better in one; the larger p of the two is corrected by Holm over all ordered pairs of a
    cell.

    Args:
        groups: of one analysis.
        margin: what counts as no worse.
        alpha: level of the whole family of a cell.
    """
    cells: dict[tuple[str, str, Cell], list[_Point]] = {}
    for group in groups:
        # Of several models the scenario's label has the model's name behind it.
        scenario, metric = str(group.runs[0].manifest.scenario.get("name", "")), group.context.primary_metric
        for point in _points(group, scenario, metric):
            cells.setdefault((scenario, metric, point.row.cell), []).append(point)
    rows: list[FrontierRow] = []
    for key in sorted(cells, key=lambda key: (key[0], key[1], cell_order(key[2]))):
        points = cells[key]
        if len(points) > 1:
            _judge(points, margin, alpha)
        rows += [point.row for point in points]
    return rows


def _points(group: GroupResult, scenario: str, metric: str) -> list[_Point]:
    quality, found = quality_rows(group), []
    for (engine, cell, name), launches in group.means.items():
        if name != metric or cell is None or engine in group.context.not_comparable or not len(launches.means):
            continue
        full = launches.full(least_requests(metric))
        means = launches.means[[block in full for block in launches.blocks]]
        if not len(means):
            continue
        speed = _logs(means)
        row = FrontierRow(
            scenario=scenario,
            cell=cell,
            metric=metric,
            model=group.context.model,
            engine=engine,
            speed=_value(speed),
            n_launches=speed.n,
        )
        values = {metric: speed}
        memory = group.means.get((engine, cell, MEMORY))
        if memory is not None and len(memory.means) and (memory.means > 0).all():
            values[MEMORY] = _logs(memory.means)
            row.memory = _value(values[MEMORY])
        lost = worse_than_reference(quality, engine)
        if lost is not None:
            row.lost_nats = Value(lost.nats, lost.low, lost.high)
            values[QUALITY] = _Logs(lost.nats, lost.se, 0)
        found.append(_Point(row, values))
    return found


def _logs(means: np.ndarray) -> _Logs:
    logs = np.log(means)
    se = float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else math.nan
    return _Logs(float(logs.mean()), se, len(logs))


def _value(logs: _Logs) -> Value:
    half = float(t_quantile(0.975, logs.n - 1)) * logs.se if logs.n > 1 else math.nan
    return Value(math.exp(logs.mean), math.exp(logs.mean - half), math.exp(logs.mean + half))


def _judge(points: Sequence[_Point], margin: float, alpha: float) -> None:
    """Write into the rows who is shown to dominate them."""
    pairs = permutations(range(len(points)), 2)
    found = dominated({(a, b): _advantages(points[a], points[b]) for a, b in pairs}, margin, alpha)
    for number, (by, better_in, p_adjusted) in found.items():
        row, winner = points[number].row, points[by].row
        row.dominated_by, row.better_in = f"{winner.model}, {winner.engine}", better_in
        row.p_adjusted = p_adjusted


def _advantages(a: _Point, b: _Point) -> list[Advantage]:
    """Return how much better A is than B in what both have; nothing where speed or everything else is missing."""
    found = []
    for name in a.values:
        mine, other = a.values[name], b.values.get(name)
        if other is None:
            continue
        se = math.hypot(mine.se, other.se)
        if name == QUALITY:
            found.append(Advantage(name, other.mean - mine.mean, se, NORMAL_DF))
            continue
        if min(mine.n, other.n) < LAUNCHES_NEEDED:
            continue
        sign = 1 if metric_of(name).higher_is_better else -1
        # Welch 1947, Satterthwaite 1946: degrees of freedom of a difference of means with unlike variances.
        spread = mine.se**4 / (mine.n - 1) + other.se**4 / (other.n - 1)
        df = se**4 / spread if spread > 0 else NORMAL_DF
        found.append(Advantage(name, sign * (mine.mean - other.mean), se, df))
    return found if len(found) > 1 and found[0].objective == a.row.metric else []
