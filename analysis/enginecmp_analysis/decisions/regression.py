"""Regressions: is a new run slower than an old one, by how much, and is that confirmed?

Two runs share no blocks, so their launches are compared unpaired: Welch's t on logs. Where both sides pool several
runs, the run is what is repeated, and the means of runs are compared. Every ratio is turned so that above 1 is worse.
Nothing is corrected for the number of comparisons: a run that did not change is far from the limits, and a false alarm
needs a true slowdown that is already next to one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.fingerprint import difference
from enginecmp_analysis.data.group import Analysis, GroupResult, cell_notes
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, metric_of
from enginecmp_analysis.decisions.limits import Limits, find_compared
from enginecmp_analysis.judge.compare import LogRatio, apart, by_block
from enginecmp_analysis.judge.judge import Options, least_requests
from enginecmp_analysis.judge.power import launches_for
from enginecmp_analysis.schema.regression import Band, CompareReport, Confirmed, Level, RegressionLine, Side
from enginecmp_analysis.statistics.tails import cv_upper_bound

REPRODUCIBLE = 0.05
"""Launch means are reproducible when the upper bound of their coefficient of variation is below this."""

ONE_SIDED = 0.90
"""A two-sided interval at this confidence has the one-sided 95 % bounds as its limits."""


def band(slowdown: float, limits: Limits) -> Band | None:
    """Return the band of a point estimate; None when there is none."""
    if not math.isfinite(slowdown):
        return None
    if slowdown > 1 + limits.critical:
        return "critical"
    return "warning" if slowdown >= 1 + limits.warning else "acceptable"


def confirm(lower: float, upper: float, limits: Limits) -> Confirmed:
    """Return what one-sided 95 % bounds of a slowdown prove; NaN bounds prove nothing."""
    if upper < 1 + limits.warning:
        return "PASS"
    if lower > 1 + limits.critical:
        return "CRITICAL"
    return "WARNING" if lower > 1 + limits.warning else "INCONCLUSIVE"


def slowdown(base: LaunchMeans, new: LaunchMeans, *, higher_is_better: bool) -> LogRatio:
    """Compare two sides, turned so that a ratio above 1 is worse: over launches, over runs where both pool several."""
    return (apart(new, base) if higher_is_better else apart(base, new)).log_ratio()


def needed_to_confirm(found: LogRatio, limits: Limits) -> int | None:
    """Return how many more launches of each side settle on which side of the nearer limit the slowdown lies.

    More runs, where the ratio rests on runs. With probability 0.8, if the ratio and the spread stay as they are; None
    when that cannot be told.
    """
    if not bool(found.decidable):
        return None
    # A slowdown above the warning limit is settled as soon as it is told from that limit.
    distance = abs(float(found.estimate) - math.log1p(limits.warning))
    have = found.runs if found.runs > 1 else found.n
    spread = float(found.se) * math.sqrt(have)
    # A one-sided test at 5 % is a two-sided one at 10 % that can only err to one side.
    total = launches_for(spread, distance, 0.0, 1 - ONE_SIDED, paired=False) if distance > 0 else None
    return None if total is None else max(1, total - have)


class _Asked(NamedTuple):
    """Which metrics are compared, and against which thresholds.

    Attributes:
        metrics: names; empty means the primary one.
        instead: whether they stand in the place of the primary one, not beside it.
        limits: thresholds of the metrics that have none of their own.
        limits_of: metric → its own.
    """

    metrics: tuple[str, ...]
    instead: bool
    limits: Limits
    limits_of: Mapping[str, Limits]

    def options(self, cuts: Mapping[Cell, int] | None = None) -> Options:
        """Return how runs are to be analysed, whose primary metric is among what is compared."""
        found = [find_compared(name) for name in self.metrics]
        shown = tuple(dict.fromkeys(metric.name for metric in found)) if self.instead else ()
        quantiles = any(name not in METRICS for name in self.metrics)
        return Options(metrics=shown, quantiles=quantiles, cuts=dict(cuts or {}))

    def wanted(self, primary: str) -> tuple[str, ...]:
        """Return the metrics to compare in a scenario of that primary metric ("" for none)."""
        beside = (primary,) if primary and not self.instead else ()
        return tuple(dict.fromkeys([*beside, *self.metrics]))

    def limits_for(self, metric: str) -> Limits:
        """Return the thresholds of a metric."""
        return self.limits_of.get(metric, self.limits)


def compare_runs(
    base: Sequence[Run],
    new: Sequence[Run],
    *,
    limits: Limits | None = None,
    metrics: Sequence[str] = (),
    limits_of: Mapping[str, Limits] | None = None,
    allow_different: bool = False,
) -> CompareReport:
    """Compare new runs with old ones.

    Args:
        base: runs of one side; those of one scenario must be fit to be pooled.
        new: runs of the other.
        limits: thresholds of the metrics that have none of their own.
        metrics: names, of quantiles too ("ttft_seconds_p50"); empty takes the primary metric of the scenario.
        limits_of: metric → thresholds of its own; such a metric is compared beside `metrics`.
        allow_different: compare although model, machine, driver or scenario differ.

    Raises:
        ResultsError: the sides differ in what must be the same, share a run, or have nothing in common.
        UsageError: an unknown metric, or none to decide on.
    """
    limits, limits_of = limits or Limits(), limits_of or {}
    asked = _Asked(tuple(dict.fromkeys([*metrics, *limits_of])), bool(metrics), limits, limits_of)
    report = CompareReport(
        base=[run.manifest.run_id for run in base],
        new=[run.manifest.run_id for run in new],
        warning_limit=limits.warning,
        critical_limit=limits.critical,
        fail_on=limits.fail_on,
        lines=[],
        not_compared=[],
        changed=[],
        warnings=[],
    )
    if shared := sorted(set(report.base) & set(report.new)):
        msg = f"run {shared[0]} is on both sides; name runs, not folders that hold both"
        raise ResultsError(msg)
    old, recent = (analyse(side, asked.options()) for side in (base, new))
    before, after = _by_scenario(old, "base"), _by_scenario(recent, "new")
    _list_missing(report, "scenario", before, after)
    for name in [name for name in before if name in after]:
        _compare_groups(report, name, before[name], after[name], asked, allow_different)
    if not report.lines:
        missing = "; ".join(report.not_compared) or "no request ended well and unflagged"
        msg = f"expected an engine, a cell and a metric that both sides have, found none: {missing}"
        raise ResultsError(msg)
    report.failed = any(line.failed for line in report.lines)
    return report


def _by_scenario(analysis: Analysis, side: str) -> dict[str, GroupResult]:
    found: dict[str, GroupResult] = {}
    for group in analysis.groups:
        name = str(group.runs[0].manifest.scenario.get("name", "unnamed"))
        if name in found:
            first, other = found[name].runs[0], group.runs[0]
            gap = difference(first, other)
            what = "; ".join([*gap.conditions, *gap.builds][:3])
            msg = (
                f"{side}: runs {first.manifest.run_id} and {other.manifest.run_id} cannot be pooled ({what}); "
                "name one of them"
            )
            raise ResultsError(msg)
        found[name] = group
    return found


def _compare_groups(
    report: CompareReport,
    name: str,
    old: GroupResult,
    recent: GroupResult,
    asked: _Asked,
    allow_different: bool,
) -> None:
    gap = difference(old.runs[0], recent.runs[0])
    if gap.conditions and not allow_different:
        more = f"; and {len(gap.conditions) - 5} more" if len(gap.conditions) > 5 else ""
        msg = (
            f"{name}: the runs were not made under the same conditions: {'; '.join(gap.conditions[:5])}{more}; "
            "repeat the new run under the old conditions, or pass --allow-different"
        )
        raise ResultsError(msg)
    report.changed += gap.builds
    report.warnings += [f"compared although {text}" for text in gap.conditions]
    old, recent = _cut_alike(old, recent, asked)
    for side, group in (("base", old), ("new", recent)):
        report.warnings += [f"{side}: {note}" for note in _notes(group)]
    bad = {*old.context.not_comparable, *recent.context.not_comparable}
    report.not_compared += [f"engine {label}: does not compute what the reference computes" for label in sorted(bad)]
    _list_missing(report, "engine", old.context.engines, recent.context.engines)
    wanted = asked.wanted(recent.context.primary_metric)
    if not wanted:
        msg = f"{name}: the scenario declares no primary metric; name one with --metric"
        raise UsageError(msg)
    for engine in [e for e in old.context.engines if e in recent.context.engines and e not in bad]:
        # In the order of the report: metrics as the table of metrics has them.
        for metric in sorted(wanted, key=lambda name: list(METRICS).index(metric_of(name).name)):
            places = [{k[1]: m for k, m in g.means.items() if k[0] == engine and k[2] == metric} for g in (old, recent)]
            where = [{f"{cell_name(cell)}, {metric}": cell for cell in found} for found in places]
            _list_missing(report, f"engine {engine},", *where)
            report.lines += [
                regression_line(name, engine, cell, metric, means, places[1][cell], asked.limits_for(metric))
                for cell, means in places[0].items()
                if cell in places[1]
            ]


def _cut_alike(old: GroupResult, recent: GroupResult, asked: _Asked) -> tuple[GroupResult, GroupResult]:
    """Cut the same number of requests as warm-up on both sides: the larger one of each cell."""
    cuts = {cell: max(old.cuts.get(cell, 0), recent.cuts.get(cell, 0)) for cell in {*old.cuts, *recent.cuts}}
    if all(cuts[cell] == side.cuts[cell] for side in (old, recent) for cell in side.cuts):
        return old, recent
    options = asked.options(cuts)
    return analyse(old.runs, options).groups[0], analyse(recent.runs, options).groups[0]


def _notes(group: GroupResult) -> list[str]:
    """Return what a reader must know of the runs of one side; nothing that is about engines among each other."""
    notes = [note for run in group.runs for note in run.warnings]
    notes += group.context.failed + group.context.excluded
    # Two runs share no blocks: what pairing cancels, it does not cancel here.
    return notes + [note.partition("; pairing inside blocks")[0] for note in cell_notes(group.context)]


def _list_missing(report: CompareReport, what: str, base: Iterable[str], new: Iterable[str]) -> None:
    """Name what only one side has."""
    before, after = list(base), list(new)
    report.not_compared += [f"{what} {name}: only in base" for name in before if name not in after]
    report.not_compared += [f"{what} {name}: only in new" for name in after if name not in before]


def regression_line(
    scenario: str,
    engine: str,
    cell: Cell | None,
    metric: str,
    base: LaunchMeans,
    new: LaunchMeans,
    limits: Limits,
) -> RegressionLine:
    """Judge one engine on one metric in one cell."""
    found = slowdown(base, new, higher_is_better=metric_of(metric).higher_is_better)
    ci_low, ci_high = (float(limit) for limit in found.interval())
    lower, upper = (float(limit) for limit in found.interval(ONE_SIDED))
    ratio = math.exp(float(found.estimate)) if math.isfinite(float(found.estimate)) else math.nan
    least = least_requests(metric)
    sides = _side(base, least), _side(new, least)
    full = min(side.full_launches for side in sides)
    withheld, several = full < LAUNCHES_NEEDED, found.runs > 1
    confirmed: Confirmed = "INCONCLUSIVE" if withheld else confirm(lower, upper, limits)
    reason: str | None = None
    needed: int | None = 0
    if withheld:
        which = "base" if sides[0].full_launches < LAUNCHES_NEEDED else "new"
        reason = f"{which} has {full} launches of {least} or more valid requests, it takes {LAUNCHES_NEEDED}"
        needed = LAUNCHES_NEEDED - full
    elif not bool(found.decidable):
        reason, needed = "the launches show no spread at all, or a mean of zero: there is nothing to judge by", None
    elif confirmed == "INCONCLUSIVE":
        needed = needed_to_confirm(found, limits)
        reason = f"the slowdown may be below or above {limits.warning:.1%}".replace("%", " %").replace(".0 %", " %")
    worst: dict[Level, tuple[Confirmed, ...]] = {"warning": ("WARNING", "CRITICAL"), "critical": ("CRITICAL",)}
    return RegressionLine(
        scenario=scenario,
        engine=engine,
        cell=cell,
        metric=metric,
        base=sides[0],
        new=sides[1],
        slowdown=ratio,
        ci_low=ci_low,
        ci_high=ci_high,
        lower=lower,
        upper=upper,
        band=band(ratio, limits),
        confirmed=confirmed,
        withheld=withheld,
        reason=reason,
        n_runs=found.runs if several else msgspec.UNSET,
        launches_needed=0 if several and not withheld else needed,
        runs_needed=needed if several and not withheld else msgspec.UNSET,
        warning_limit=limits.warning,
        critical_limit=limits.critical,
        failed=confirmed in worst[limits.fail_on],
    )


def _means(launches: LaunchMeans) -> NDArray[np.float64]:
    return np.array(list(by_block(launches).values()), dtype=np.float64)


def _side(launches: LaunchMeans, least: int) -> Side:
    means = _means(launches)
    mean = float(means.mean())
    cv = float(means.std(ddof=1)) / mean if len(means) > 1 and mean > 0 else math.nan
    upper = cv_upper_bound(cv, len(means))
    return Side(
        n_launches=len(means),
        full_launches=len(launches.full(least)),
        mean=mean,
        cv=cv,
        cv_upper=upper,
        reproducible=upper < REPRODUCIBLE,
    )
