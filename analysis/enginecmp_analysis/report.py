"""From runs to verdicts: every step of the analysis, in order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.types import Cell
from enginecmp_analysis.context import Context, GroupResult, describe_group, scenario_labels
from enginecmp_analysis.data.cells import cell_name, cell_order, is_open
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.fingerprint import Group, group_runs
from enginecmp_analysis.data.launch_quantiles import quantile_launches
from enginecmp_analysis.data.launches import Key, LaunchMeans, launch_means, measured, scenario_kind
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.findings.find import find_all
from enginecmp_analysis.findings.notes import exclusions, failed_launches, invalid_cells, launch_notes, steadiness_notes
from enginecmp_analysis.judge import Options, candidates, judge
from enginecmp_analysis.metrics import METRICS, find_metric, metric_of, steady_metric
from enginecmp_analysis.schema import StatsReport, Summary
from enginecmp_analysis.statistics.quantiles import quantiles_or_nan
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.warmup import steadiness

__all__ = ["Analysis", "GroupResult", "Options", "analyse", "cell_name"]


@dataclass(slots=True)
class Analysis:
    """The report, and what lies behind it."""

    report: StatsReport
    groups: list[GroupResult] = field(default_factory=list)

    @property
    def contexts(self) -> list[Context]:
        """The frames of all groups."""
        return [group.context for group in self.groups]


def analyse(runs: Sequence[Run], options: Options | None = None) -> Analysis:
    """Turn runs into verdicts.

    Args:
        runs: at least one; those that differ in model, machine or engine build are kept apart.
        options: what to look at.

    Raises:
        UsageError: an unknown baseline or metric.
        ResultsError: there is no run.
    """
    options = options or Options()
    if not runs:
        msg = "expected at least one run, got none"
        raise ResultsError(msg)
    for name in options.metrics:
        find_metric(name)
    if options.baseline is not None:
        known = {engine.name for run in runs for engine in run.manifest.engines}
        if options.baseline not in known:
            msg = f"unknown baseline '{options.baseline}'{did_you_mean(options.baseline, known)}"
            raise UsageError(msg)
    groups, split = group_runs(runs)
    report = StatsReport(comparisons=[], summaries=[], warnings=[w for run in runs for w in run.warnings] + split)
    results = [
        _analyse_group(group, scenario, options, report)
        for group, scenario in zip(groups, scenario_labels(groups), strict=True)
    ]
    report.comparisons.sort(key=lambda c: not c.primary)
    return Analysis(report, results)


def _analyse_group(group: Group, scenario: str, options: Options, report: StatsReport) -> GroupResult:
    context = describe_group(group, scenario, options.baseline)
    means, cuts, kept = _means(group, context, options)
    order = list(context.engines)
    cells: list[Cell | None] = [*sorted({k[1] for k in means if k[1] is not None}, key=cell_order), None]
    names = list(METRICS)
    # Everything below goes cell by cell, metric by metric, the baseline first.
    means = {
        (engine, cell, metric): means[engine, cell, metric]
        for cell in cells
        for metric in names
        for engine in order
        if (engine, cell, metric) in means
    }
    report.summaries += [_summary(scenario, key, launches) for key, launches in means.items() if shown(key[2], options)]
    if options.quantiles:
        quantiles, missing = quantile_launches(means, names)
        report.warnings += missing
        means |= quantiles
        names += sorted({metric for _, _, metric in quantiles})
    names = [name for name in names if metric_of(name).compared]
    found = candidates(means, context.pairs(options.pairs), cells, names, context.primary_metric)
    # All are judged, shown or not: looking at one metric alone must not loosen the correction.
    report.comparisons += [c for c in judge(scenario, found, options) if shown(c.metric, options)]
    result = GroupResult(context, group.runs, means, cuts, kept)
    if found_more := find_all(result):
        report.findings = [*(report.findings or []), *found_more]
    report.warnings += failed_launches(group.runs)
    report.warnings += [f"{scenario}: {note}" for note in invalid_cells(group.runs)]
    report.warnings += exclusions(group.runs, include_flagged=options.include_flagged) + context.warnings
    report.warnings += cell_notes(context)
    return result


def shown(metric: str, options: Options) -> bool:
    """Return whether a metric, or the metric that a quantile is of, was asked for."""
    return not options.metrics or metric_of(metric).name in options.metrics


def _means(
    group: Group, context: Context, options: Options
) -> tuple[dict[Key, LaunchMeans], dict[Cell, int], list[NDArray[np.bool_]]]:
    """Reduce to launch means, the warm-up cut, and note what the launches are like; return cuts and masks too.

    Steady state is judged on the time of whole requests, whatever metric is asked for. In an open loop times also
    grow because arrivals outrun the engine, which is no warm-up: there nothing is cut but what was asked for.
    """
    steady = steady_metric(scenario_kind(group.runs[0]))
    keep = [measured(run.columns, include_flagged=options.include_flagged) for run in group.runs]
    before = launch_means(group.runs, [steady], keep)
    cuts: dict[Cell, int] = {}
    for cell in {k[1] for k in before if k[1] is not None}:
        series = {engine: m.per_launch() for (engine, of, _), m in before.items() if of == cell}
        floor = max(options.warmup_floor, options.cuts.get(cell, 0))
        found = steadiness(series, floor)
        if is_open(cell):
            found = replace(found, cut=floor)
        context.notes[cell] = steadiness_notes(found)
        cuts[cell] = found.cut
    for run, mask in zip(group.runs, keep, strict=True):
        for code, cell in enumerate(run.columns.cells):
            if cuts.get(cell):
                early = (run.columns.cell == code) & (run.columns.index < cuts[cell])
                mask &= ~(early & (run.columns.phase == MEASURE))
    means = launch_means(group.runs, METRICS, keep)
    for (engine, where, metric), launches in means.items():
        if metric == steady:
            context.notes.setdefault(where, []).extend(launch_notes(engine, launches))
    return means, cuts, keep


def _summary(scenario: str, key: Key, launches: LaunchMeans) -> Summary:
    engine, cell, metric = key
    mean, low, high = mean_interval(launches.means)
    spread = float(launches.means.std(ddof=1)) / mean if len(launches.means) > 1 and mean > 0 else math.nan
    p50, p90, p95, p99 = quantiles_or_nan(launches.values)
    return Summary(
        scenario=scenario,
        engine=engine,
        cell=cell,
        metric=metric,
        n_launches=len(launches.means),
        n_samples=int(launches.requests.sum()),
        mean=mean,
        ci_low=low,
        ci_high=high,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        cv_launches=spread,
    )


def cell_notes(context: Context) -> list[str]:
    """Return the notes of all cells, each with the place it is about."""
    return [f"{context.scenario}, {cell_name(cell)}: {note}" for cell, notes in context.notes.items() for note in notes]
