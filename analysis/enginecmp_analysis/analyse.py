"""From runs to verdicts: every step of the analysis, in order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError, did_you_mean, meant
from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_name, cell_order, is_open
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.fingerprint import Group, group_runs
from enginecmp_analysis.data.group import Analysis, Context, GroupResult, cell_notes, describe_group, scenario_labels
from enginecmp_analysis.data.launch_quantiles import quantile_launches
from enginecmp_analysis.data.launches import Key, LaunchMeans, launch_means, measured, scenario_kind
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, find_metric, metric_of, steady_metric
from enginecmp_analysis.data.own_lengths import comparable, lengths_of
from enginecmp_analysis.findings.find import find_all
from enginecmp_analysis.findings.notes import (
    NOTABLE_LOSS,
    exclusions,
    failed_launches,
    imported,
    invalid_cells,
    launch_notes,
    steadiness_notes,
    unmeasured,
)
from enginecmp_analysis.findings.overall import without_primary
from enginecmp_analysis.judge.judge import Options, candidates, judge, levels_disagree
from enginecmp_analysis.judge.ranking import rank_cell
from enginecmp_analysis.schema.stats import StatsReport, Summary
from enginecmp_analysis.statistics.quantiles import quantiles_or_nan
from enginecmp_analysis.statistics.student import mean_interval, positive_interval
from enginecmp_analysis.statistics.warmup import steadiness


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
        baseline = meant(options.baseline, known)
        if baseline not in known:
            msg = f"unknown baseline '{baseline}'{did_you_mean(baseline, known)}"
            raise UsageError(msg)
        options = replace(options, baseline=baseline)
    groups, split = group_runs(runs)
    report = StatsReport(comparisons=[], summaries=[], warnings=[w for run in runs for w in run.warnings] + split)
    results = [
        _analyse_group(group, scenario, options, report)
        for group, scenario in zip(groups, scenario_labels(groups), strict=True)
    ]
    report.comparisons.sort(key=lambda c: not c.primary)
    return Analysis(report, results, options.metrics)


def _analyse_group(group: Group, scenario: str, options: Options, report: StatsReport) -> GroupResult:
    context = describe_group(group, scenario, options.baseline)
    context.warnings += imported(group.runs)
    means, cuts, kept, held = _means(group, context, options)
    cells, names = _cells(means), list(METRICS)
    # Everything below goes cell by cell, metric by metric, the baseline first.
    means = _in_order(means, list(context.engines))
    report.summaries += [_summary(scenario, key, launches) for key, launches in means.items() if shown(key[2], options)]
    # Of requests that end by themselves some are no equal work.
    means = comparable(group.runs, kept, means, lengths_of(group.runs, kept))
    if options.quantiles:
        quantiles, missing = quantile_launches(means, names)
        report.warnings += missing
        means |= quantiles
        names += sorted({metric for _, _, metric in quantiles})
    names = [name for name in names if metric_of(name).compared]
    found = candidates(means, context.pairs(options.pairs), cells, names, context.primary_metric)
    # All are judged, shown or not: looking at one metric alone must not loosen the correction.
    judged = judge(scenario, found, options, context.levels)
    for c in judged:
        if unproven := [label for label in (c.baseline, c.engine) if label in context.unproven]:
            c.unproven = unproven
    # Before all else: it says what the numbers of the primary metric rest on.
    alone = f"look at each {context.levels.noun} by itself"
    report.warnings[:0] = [
        f"{scenario}, {cell_name(c.key[1])}: {c.key[0]} / {c.baseline}: {told}; {alone}"
        for c in found
        if c.primary and (told := levels_disagree(c.matched, context.levels))
    ]
    report.comparisons += [c for c in judged if shown(c.metric, options)]
    spoilt = _flagged_throughout(group, context, means, options)
    report.summaries += [
        msgspec.structs.replace(_summary(scenario, key, launches), flagged=True)
        for key, launches in spoilt.items()
        if shown(key[2], options)
    ]
    # A search meets every engine at loads of its own.
    searched = bool(group.runs[0].manifest.scenario.get("find_max"))
    if not searched and (not options.metrics or context.primary_metric in options.metrics):
        compared = {cell for cell in cells if cell is not None}
        more = sorted({k[1] for k in spoilt if k[1] is not None} - compared, key=cell_order)
        ranked = [rank_cell(cell, context, means | spoilt, options) for cell in [*more, *cells]]
        report.rankings += [ranking for ranking in ranked if ranking is not None]
    result = GroupResult(context, group.runs, means, cuts, kept, held)
    found_more = find_all(result)
    if group.runs[0].manifest.scenario.get("blocks") != 0:
        timed = {e.name for run in group.runs for e in run.manifest.engines if e.options.get("timed", True)}
        valued = _valued(means, context)
        context.unmeasured = unmeasured(group.runs, [e for e in context.engines if e in timed - valued])
        context.without_primary = without_primary(result, found_more, [e for e in context.engines if e in valued])
        # First, because everything below is about the others.
        report.warnings[:0] = context.unmeasured + context.without_primary
    if found_more:
        report.findings = [*(report.findings or []), *found_more]
    context.failed = failed_launches(group.runs)
    shares = exclusions(group.runs, include_flagged=options.include_flagged)
    context.excluded = list(shares)
    report.warnings += context.failed
    report.warnings += [f"{scenario}: {note}" for note in invalid_cells(group.runs)]
    report.warnings += [note for note, share in shares.items() if share > NOTABLE_LOSS]
    report.warnings += context.warnings
    report.warnings += [note for run in group.runs for note in run.launch_notes]
    report.warnings += cell_notes(context)
    # One request in a hundred changes no reading.
    report.warnings += [note for note, share in shares.items() if share <= NOTABLE_LOSS]
    return result


def _valued(means: Mapping[Key, LaunchMeans], context: Context) -> set[str]:
    """Return the engines with an answer: memory alone is none where something else was asked."""
    return {
        engine
        for engine, cell, metric in means
        if cell is not None and (metric == context.primary_metric or not metric_of(metric).bytes_held)
    }


def _flagged_throughout(
    group: Group, context: Context, means: Mapping[Key, LaunchMeans], options: Options
) -> dict[Key, LaunchMeans]:
    """Return the launch means of the engines whose every measured request is flagged, and note who they are.

    They stand beside the others' and take no part in anything: figures that vanish would leave a reader with nothing.
    """
    if options.include_flagged:
        return {}
    valued = _valued(means, context)
    masks = []
    for run in group.runs:
        codes = [code for code, label in enumerate(run.columns.engines) if label not in valued]
        masks.append(measured(run.columns, include_flagged=True) & np.isin(run.columns.engine, codes))
    if not any((mask & (run.columns.phase == MEASURE)).any() for run, mask in zip(group.runs, masks, strict=True)):
        return {}
    found = {key: launches for key, launches in launch_means(group.runs, METRICS, masks).items() if key not in means}
    context.flagged = [label for label in context.engines if any(key[0] == label and key[1] for key in found)]
    return _in_order(found, context.flagged)


def _in_order(means: Mapping[Key, LaunchMeans], engines: Sequence[str]) -> dict[Key, LaunchMeans]:
    """Return launch means of some engines cell by cell, metric by metric, engine by engine."""
    return {
        (engine, cell, metric): means[engine, cell, metric]
        for cell in _cells(means)
        for metric in METRICS
        for engine in engines
        if (engine, cell, metric) in means
    }


def _cells(means: Iterable[Key]) -> list[Cell | None]:
    """Return the cells in their order, then None for what belongs to a whole launch."""
    return [*sorted({cell for _, cell, _ in means if cell is not None}, key=cell_order), None]


def shown(metric: str, options: Options) -> bool:
    """Return whether a metric, or the metric that a quantile is of, was asked for."""
    return not options.metrics or metric_of(metric).name in options.metrics


def _means(
    group: Group, context: Context, options: Options
) -> tuple[dict[Key, LaunchMeans], dict[Cell, int], list[NDArray[np.bool_]], list[NDArray[np.bool_]]]:
    """Reduce to launch means, the warm-up cut, and note what the launches are like; return cuts and masks too.

    Steady state is judged on the time of whole requests, whatever metric is asked for. In an open loop times also
    grow because arrivals outrun the engine, which is no warm-up: there nothing is cut but what was asked for.
    """
    steady = steady_metric(scenario_kind(group.runs[0]))
    keep, held = (
        [measured(run.columns, include_flagged=options.include_flagged, bytes_held=bytes_held) for run in group.runs]
        for bytes_held in (False, True)
    )
    before = launch_means(group.runs, [steady], keep)
    cuts: dict[Cell, int] = {}
    # Means that were told have no requests whose steadiness could be judged.
    before = {key: launches for key, launches in before.items() if not launches.told}
    for cell in sorted({k[1] for k in before if k[1] is not None}, key=cell_order):
        series = {engine: m.per_launch() for (engine, of, _), m in before.items() if of == cell}
        floor = max(options.warmup_floor, options.cuts.get(cell, 0))
        found = steadiness(series, floor)
        if is_open(cell):
            found = replace(found, cut=floor)
        context.notes[cell] = steadiness_notes(found)
        cuts[cell] = found.cut
    for run, mask in zip([*group.runs, *group.runs], [*keep, *held], strict=True):
        for code, cell in enumerate(run.columns.cells):
            if cuts.get(cell):
                early = (run.columns.cell == code) & (run.columns.index < cuts[cell])
                mask &= ~(early & (run.columns.phase == MEASURE))
    means = launch_means(group.runs, METRICS, keep, held)
    for (engine, where, metric), launches in means.items():
        if metric == steady and not launches.told:
            context.notes.setdefault(where, []).extend(launch_notes(engine, launches))
    return means, cuts, keep, held


def _summary(scenario: str, key: Key, launches: LaunchMeans) -> Summary:
    engine, cell, metric = key
    interval = mean_interval if metric_of(metric).signed else positive_interval
    mean, low, high = interval(launches.replicates())
    spread = float(launches.means.std(ddof=1)) / mean if len(launches.means) > 1 and mean > 0 else math.nan
    # Means that were told stand for many requests: they have no quantile of single ones.
    p50, p90, p95, p99 = quantiles_or_nan([] if launches.told else launches.values)
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
