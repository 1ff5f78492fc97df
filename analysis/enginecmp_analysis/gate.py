"""The regression gate: is a new run slower than an old one, by how much, and is that confirmed?

Two runs share no blocks, so their launches are compared unpaired: Welch's t on logs. Every ratio is turned so that
above 1 is worse. Nothing is corrected for the number of comparisons: a run that did not change is far from the
limits, and a false alarm needs a true slowdown that is already next to one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError
from enginecmp.types import Cell
from enginecmp_analysis.compare import LogRatio, by_block, welch
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.fingerprint import difference
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.findings.notes import exclusions, failed_launches
from enginecmp_analysis.judge import Options, least_requests
from enginecmp_analysis.metrics import METRICS, metric_of
from enginecmp_analysis.report import Analysis, GroupResult, analyse, cell_notes
from enginecmp_analysis.statistics.power import launches_for
from enginecmp_analysis.statistics.tails import cv_upper_bound
from enginecmp_analysis.verdict import MIN_LAUNCHES

COMPARE_SCHEMA = "enginecmp-compare/1"

REPRODUCIBLE = 0.05
"""Launch means are reproducible when the upper bound of their coefficient of variation is below this."""

ONE_SIDED = 0.90
"""A two-sided interval at this confidence has the one-sided 95 % bounds as its limits."""

Band = Literal["acceptable", "warning", "critical"]
Confirmed = Literal["PASS", "WARNING", "CRITICAL", "INCONCLUSIVE"]
Level = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True)
class Limits:
    """From which slowdown on something is done about it.

    Attributes:
        warning: relative slowdown, e.g. 0.10.
        critical: relative slowdown, above `warning`.
        fail_on: the lowest level whose confirmation fails the gate.
    """

    warning: float = 0.10
    critical: float = 0.20
    fail_on: Level = "critical"

    def __post_init__(self) -> None:
        if not 0 < self.warning < self.critical:
            msg = f"limits: expected 0 < warning < critical, got {self.warning:.1%} and {self.critical:.1%}"
            raise UsageError(msg)


class Side(msgspec.Struct, kw_only=True):
    """The launches of one side of a comparison.

    Attributes:
        n_launches: launches (blocks).
        full_launches: those of them with at least ten requests.
        mean: mean of launch means, in the metric's unit.
        cv: standard deviation of launch means over their mean.
        cv_upper: upper 95 % bound of it.
        reproducible: whether that bound is below 5 %.
    """

    n_launches: int
    full_launches: int
    mean: float
    cv: float
    cv_upper: float
    reproducible: bool


class GateLine(msgspec.Struct, kw_only=True):
    """One engine on one metric in one cell, new against base.

    Attributes:
        scenario: name.
        engine: label.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        base: launches of the old run.
        new: launches of the new run.
        slowdown: new / base of a time, base / new of a rate: above 1 is worse.
        ci_low: lower limit of its two-sided 95 % interval.
        ci_high: upper limit.
        lower: one-sided 95 % bound: the slowdown is at least this.
        upper: one-sided 95 % bound: the slowdown is at most this.
        band: where the point estimate lies; null when there is none.
        confirmed: what the one-sided bounds prove.
        withheld: fewer than ten launches of ten requests on one side, so nothing is confirmed.
        reason: why it is inconclusive, else null.
        launches_needed: more launches of each side for an answer; 0 when there is one, null when unknown.
        failed: confirmed at or above the level that fails the gate.
    """

    scenario: str
    engine: str
    cell: Cell | None
    metric: str
    base: Side
    new: Side
    slowdown: float
    ci_low: float
    ci_high: float
    lower: float
    upper: float
    band: Band | None
    confirmed: Confirmed
    withheld: bool
    reason: str | None
    launches_needed: int | None
    failed: bool


class CompareReport(msgspec.Struct, kw_only=True):
    """Everything that `cmp compare` found.

    Attributes:
        schema: "enginecmp-compare/1".
        base: ids of the old runs.
        new: ids of the new runs.
        warning_limit: relative slowdown.
        critical_limit: relative slowdown.
        fail_on: warning or critical.
        failed: at least one regression is confirmed at or above that level.
        lines: one a comparison.
        not_compared: what only one side has, or what must not be compared; one sentence each.
        changed: versions, libraries and options of engines that differ.
        warnings: what else a reader must know.
    """

    schema: str = COMPARE_SCHEMA
    base: list[str]
    new: list[str]
    warning_limit: float
    critical_limit: float
    fail_on: Level
    failed: bool = False
    lines: list[GateLine] = []
    not_compared: list[str] = []
    changed: list[str] = []
    warnings: list[str] = []


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
    """Compare the launches of two runs, turned so that a ratio above 1 is worse."""
    old, recent = _means(base), _means(new)
    return welch(recent, old) if higher_is_better else welch(old, recent)


def needed_to_confirm(found: LogRatio, limits: Limits) -> int | None:
    """Return how many more launches of each side settle on which side of the nearer limit the slowdown lies.

    With probability 0.8, if the ratio and the spread stay as they are; None when that cannot be told.
    """
    if not bool(found.decidable):
        return None
    # A slowdown above the warning limit is settled as soon as it is told from that limit.
    distance = abs(float(found.estimate) - math.log1p(limits.warning))
    spread = float(found.se) * math.sqrt(found.n)
    # A one-sided test at 5 % is a two-sided one at 10 % that can only err to one side.
    total = launches_for(spread, distance, 0.0, 1 - ONE_SIDED, paired=False) if distance > 0 else None
    return None if total is None else max(1, total - found.n)


def compare_runs(
    base: Sequence[Run],
    new: Sequence[Run],
    *,
    limits: Limits | None = None,
    metrics: Sequence[str] = (),
    allow_different: bool = False,
) -> CompareReport:
    """Compare new runs with old ones.

    Args:
        base: runs of one side; those of one scenario must be fit to be pooled.
        new: runs of the other.
        limits: thresholds.
        metrics: names; empty takes the primary metric of the scenario.
        allow_different: compare although model, machine, driver or scenario differ.

    Raises:
        ResultsError: the sides differ in what must be the same, share a run, or have nothing in common.
        UsageError: an unknown metric, or none to decide on.
    """
    limits = limits or Limits()
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
    old, recent = (analyse(side, Options(metrics=tuple(metrics))) for side in (base, new))
    before, after = _by_scenario(old, "base"), _by_scenario(recent, "new")
    _list_missing(report, "scenario", before, after)
    for name in [name for name in before if name in after]:
        _compare_groups(report, name, before[name], after[name], limits, tuple(metrics), allow_different)
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
    limits: Limits,
    metrics: tuple[str, ...],
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
    old, recent = _cut_alike(old, recent, metrics)
    for side, group in (("base", old), ("new", recent)):
        report.warnings += [f"{side}: {note}" for note in _notes(group)]
    bad = {*old.context.not_comparable, *recent.context.not_comparable}
    report.not_compared += [f"engine {label}: does not compute what the reference computes" for label in sorted(bad)]
    _list_missing(report, "engine", old.context.engines, recent.context.engines)
    wanted = metrics or ((recent.context.primary_metric,) if recent.context.primary_metric else ())
    if not wanted:
        msg = f"{name}: the scenario declares no primary metric; name one with --metric"
        raise UsageError(msg)
    for engine in [e for e in old.context.engines if e in recent.context.engines and e not in bad]:
        # In the order of the report: metrics as the table of metrics has them.
        for metric in sorted(wanted, key=list(METRICS).index):
            places = [{k[1]: m for k, m in g.means.items() if k[0] == engine and k[2] == metric} for g in (old, recent)]
            where = [{f"{cell_name(cell)}, {metric}": cell for cell in found} for found in places]
            _list_missing(report, f"engine {engine},", *where)
            report.lines += [
                gate_line(name, engine, cell, metric, means, places[1][cell], limits)
                for cell, means in places[0].items()
                if cell in places[1]
            ]


def _cut_alike(old: GroupResult, recent: GroupResult, metrics: tuple[str, ...]) -> tuple[GroupResult, GroupResult]:
    """Cut the same number of requests as warm-up on both sides: the larger one of each cell."""
    cuts = {cell: max(old.cuts.get(cell, 0), recent.cuts.get(cell, 0)) for cell in {*old.cuts, *recent.cuts}}
    if all(cuts[cell] == side.cuts[cell] for side in (old, recent) for cell in side.cuts):
        return old, recent
    options = Options(metrics=metrics, cuts=cuts)
    return analyse(old.runs, options).groups[0], analyse(recent.runs, options).groups[0]


def _notes(group: GroupResult) -> list[str]:
    """Return what a reader must know of the runs of one side; nothing that is about engines among each other."""
    notes = [note for run in group.runs for note in run.warnings]
    notes += failed_launches(group.runs) + exclusions(group.runs)
    # Two runs share no blocks: what pairing cancels, it does not cancel here.
    return notes + [note.partition("; pairing inside blocks")[0] for note in cell_notes(group.context)]


def _list_missing(report: CompareReport, what: str, base: Iterable[str], new: Iterable[str]) -> None:
    """Name what only one side has."""
    before, after = list(base), list(new)
    report.not_compared += [f"{what} {name}: only in base" for name in before if name not in after]
    report.not_compared += [f"{what} {name}: only in new" for name in after if name not in before]


def gate_line(
    scenario: str,
    engine: str,
    cell: Cell | None,
    metric: str,
    base: LaunchMeans,
    new: LaunchMeans,
    limits: Limits,
) -> GateLine:
    """Judge one engine on one metric in one cell."""
    found = slowdown(base, new, higher_is_better=metric_of(metric).higher_is_better)
    ci_low, ci_high = (float(limit) for limit in found.interval())
    lower, upper = (float(limit) for limit in found.interval(ONE_SIDED))
    ratio = math.exp(float(found.estimate)) if math.isfinite(float(found.estimate)) else math.nan
    least = least_requests(metric)
    sides = _side(base, least), _side(new, least)
    full = min(side.full_launches for side in sides)
    withheld = full < MIN_LAUNCHES
    confirmed: Confirmed = "INCONCLUSIVE" if withheld else confirm(lower, upper, limits)
    reason: str | None = None
    needed: int | None = 0
    if withheld:
        which = "base" if sides[0].full_launches < MIN_LAUNCHES else "new"
        reason = f"{which} has {full} launches of {least} or more valid requests, it takes {MIN_LAUNCHES}"
        needed = MIN_LAUNCHES - full
    elif not bool(found.decidable):
        reason, needed = "the launches show no spread at all, or a mean of zero: there is nothing to judge by", None
    elif confirmed == "INCONCLUSIVE":
        needed = needed_to_confirm(found, limits)
        reason = f"the slowdown may be below or above {limits.warning:.1%}".replace("%", " %").replace(".0 %", " %")
    worst: dict[Level, tuple[Confirmed, ...]] = {"warning": ("WARNING", "CRITICAL"), "critical": ("CRITICAL",)}
    return GateLine(
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
        launches_needed=needed,
        failed=confirmed in worst[limits.fail_on],
    )


def _means(launches: LaunchMeans) -> NDArray[np.float64]:
    return np.array(list(by_block(launches).values()), dtype=np.float64)


def _side(launches: LaunchMeans, least: int) -> Side:
    means = _means(launches)
    mean = float(means.mean())
    cv = float(means.std(ddof=1)) / mean if len(means) > 1 and mean > 0 else math.nan
    upper = cv_upper_bound(cv, len(means))
    full = {block for block, n in zip(launches.blocks, launches.requests.tolist(), strict=True) if n >= least}
    return Side(
        n_launches=len(means),
        full_launches=len(full),
        mean=mean,
        cv=cv,
        cv_upper=upper,
        reproducible=upper < REPRODUCIBLE,
    )
