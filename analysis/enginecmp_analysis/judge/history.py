"""One metric over many runs: where it changed, and where the conditions did, so that nothing can be concluded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.fingerprint import difference
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, find_metric
from enginecmp_analysis.judge.compare import by_block
from enginecmp_analysis.schema.history import HistoryReport, Point, Series
from enginecmp_analysis.statistics.changepoint import change_points
from enginecmp_analysis.statistics.student import mean_interval, t_two_sided

SURE = 0.001
LEAST_CHANGE = 0.05

LOW_PENALTY = 3.0
"""Price of a candidate, times ln n: more are proposed than hold, and those that do not hold are merged away."""


class _Value(NamedTuple):
    run: Run
    launches: int
    mean: float
    se: float
    low: float
    high: float


def changes(logs: ArrayLike, errors: ArrayLike) -> list[int]:
    """Return where the level of a series changed.

    Candidates are the change points at a low penalty. Of them the weakest is merged away, again and again, until
    between every two neighbouring segments a t test on runs has p < .001, corrected for the places where a change
    could have been (Bonferroni), and the levels differ by at least 5 %. The variance of a run is never taken to be
    smaller than what its own launches say, so that a few runs that agree by luck prove nothing.

    Args:
        logs: (n,) mean log of each run, in the order of time.
        errors: (n,) standard error of each; NaN where it is unknown.

    Returns:
        Rising positions in 1..n-1.
    """
    x = np.asarray(logs, dtype=np.float64)
    own = np.nan_to_num(np.asarray(errors, dtype=np.float64)) ** 2
    if len(x) < 4:
        return []
    found = change_points(x, LOW_PENALTY * math.log(len(x)))
    while found:
        borders = [0, *found, len(x)]
        p = [_p_value(x, own, *borders[i : i + 3]) * (len(x) - 1) for i in range(len(found))]
        weakest = int(np.argmax(p))
        if p[weakest] < SURE:
            break
        del found[weakest]
    return found


def _p_value(x: np.ndarray, own: np.ndarray, start: int, middle: int, end: int) -> float:
    """Return the p of "the same level before and after `middle`"; 1 for a change that is too small to matter."""
    before, after = x[start:middle], x[middle:end]
    shift = float(after.mean() - before.mean())
    # Rounding must not decide about a change of exactly the limit.
    if abs(shift) < math.log1p(LEAST_CHANGE) - 1e-12:
        return 1.0
    df = len(before) + len(after) - 2
    spread = (((before - before.mean()) ** 2).sum() + ((after - after.mean()) ** 2).sum()) / df
    variance = max(float(spread), float(own[start:end].mean()))
    if variance <= 0:
        return 0.0
    se = math.sqrt(variance * (1 / len(before) + 1 / len(after)))
    return float(t_two_sided(shift / se, float(df)))


def history(found: Iterable[GroupResult], metrics: Iterable[str] = ()) -> HistoryReport:
    """Follow metrics over runs.

    A new build of an engine stays in the series, and is noted: its effect is what one looks for. Another model,
    machine, driver or scenario begins a new base line.

    Args:
        found: each of one run, at least one, in any order.
        metrics: names; empty takes the primary metric of each scenario.

    Raises:
        UsageError: an unknown metric, or none to follow.
        ResultsError: no run has a value.
    """
    wanted = list(dict.fromkeys(metrics))
    for name in wanted:
        find_metric(name)
    report = HistoryReport(series=[], warnings=[])
    places: dict[tuple[str, str, Cell | None, str], list[_Value]] = {}
    primary: set[str] = set()
    for group in sorted(found, key=lambda g: (g.runs[0].manifest.created_utc, g.runs[0].manifest.run_id)):
        (run,) = group.runs
        report.warnings += run.warnings
        primary.add(group.context.primary_metric)
        followed = wanted or [group.context.primary_metric]
        for label in group.context.not_comparable:
            report.warnings.append(f"run {run.manifest.run_id}: {label} does not compute what the reference computes")
        for (engine, cell, metric), launches in group.means.items():
            if metric in followed and engine not in group.context.not_comparable:
                key = (group.context.scenario, engine, cell, metric)
                places.setdefault(key, []).append(_value(run, launches))
    if not wanted and primary == {""}:
        msg = "no scenario of these runs declares a primary metric; name one with --metric"
        raise UsageError(msg)
    if not places:
        msg = f"expected a run with {', '.join(wanted or sorted(primary - {''}))}, found none; see `cmp stats`"
        raise ResultsError(msg)
    names = list(METRICS)
    for key in sorted(places, key=lambda k: (k[0], cell_name(k[2]), names.index(k[3]), k[1])):
        scenario, engine, cell, metric = key
        points = _points(places[key], engine)
        report.series.append(Series(scenario=scenario, engine=engine, cell=cell, metric=metric, points=points))
    return report


def _value(run: Run, launches: LaunchMeans) -> _Value:
    with np.errstate(divide="ignore"):
        logs = np.log(np.array(list(by_block(launches).values()), dtype=np.float64))
    logs = logs[np.isfinite(logs)]
    if len(logs) == 0:
        return _Value(run, 0, math.nan, math.nan, math.nan, math.nan)
    mean, low, high = mean_interval(logs)
    se = float(logs.std(ddof=1)) / math.sqrt(len(logs)) if len(logs) > 1 else math.nan
    return _Value(run, len(logs), mean, se, low, high)


def _points(values: Sequence[_Value], engine: str) -> list[Point]:
    values = [value for value in values if math.isfinite(value.mean)]
    points: list[Point] = []
    begin = 0
    for end in range(1, len(values) + 1):
        if end < len(values) and not _news(values[end - 1].run, values[end].run, engine)[0]:
            continue
        points += _era(values[begin:end], engine, values[begin - 1].run if begin else None)
        begin = end
    return points


def _news(old: Run, new: Run, engine: str) -> tuple[list[str], list[str]]:
    """Return what changed in the conditions and in the builds, of this engine alone."""
    gap = difference(old, new)
    others = tuple(f"{label} " for label in {e.name for e in new.manifest.engines} - {engine})
    return (
        [text for text in gap.conditions if not text.startswith(others)],
        [text for text in gap.builds if not text.startswith(others)],
    )


def _era(values: Sequence[_Value], engine: str, before: Run | None) -> list[Point]:
    """Return the runs under one fingerprint, split where the level changed."""
    logs = np.array([value.mean for value in values])
    starts = [0, *changes(logs, [value.se for value in values])]
    levels = [float(part.mean()) for part in np.split(logs, starts[1:])]
    points: list[Point] = []
    segment = 0
    for i, value in enumerate(values):
        if segment + 1 < len(starts) and i >= starts[segment + 1]:
            segment += 1
        last = values[i - 1].run if i else before
        conditions, builds = _news(last, value.run, engine) if last is not None else ([], [])
        points.append(
            Point(
                created_utc=value.run.manifest.created_utc,
                run_id=value.run.manifest.run_id,
                n_launches=value.launches,
                value=math.exp(value.mean),
                ci_low=math.exp(value.low),
                ci_high=math.exp(value.high),
                ratio=math.exp(value.mean - levels[segment - 1]) if segment else math.nan,
                changed=i > 0 and i in starts,
                new_fingerprint="; ".join(conditions[:3]) if i == 0 and conditions else None,
                note="; ".join(builds[:3]) if builds else None,
            )
        )
    return points
