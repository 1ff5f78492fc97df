"""The table that a person reads: ratios first, verdicts in words, 80 columns, no colour needed to understand it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.group import Analysis, Context, cell_notes
from enginecmp_analysis.data.metrics import METRICS, metric_of, verdict_word
from enginecmp_analysis.render.decision_table import decision_lines, pareto_lines, quality_lines
from enginecmp_analysis.render.findings_table import render_findings
from enginecmp_analysis.render.layout import (
    WIDTH,
    Line,
    shorten,
    show_count,
    show_interval,
    show_limits,
    show_p,
    show_percent,
    show_quantile,
    show_times,
    three_digits,
    unit_for,
    wrap,
)
from enginecmp_analysis.render.needed import more_needed
from enginecmp_analysis.render.ranking_rows import UNPROVEN
from enginecmp_analysis.schema.stats import Comparison, Details, StatsReport, Summary

APART = 1e4
"""Times and bytes of one table that differ by more than this have a unit each."""

Place = tuple[Cell | None, str]
"""Cell and metric."""

_STYLES = {"faster": "green", "slower": "red", "equivalent": "cyan", "inconclusive": "yellow", "withheld": "yellow"}


def render(analysis: Analysis) -> list[Line]:
    """Return the lines of the whole report."""
    lines: list[Line] = []
    if not any(context.engines and analysis.report.summaries for context in analysis.contexts):
        timed = any(run.manifest.scenario.get("blocks") != 0 for group in analysis.groups for run in group.runs)
        why = _nothing(analysis) if timed else "the run is of the gate alone"
        lines += [(text, "red" if timed else "yellow") for text in wrap(f"nothing to show: {why}", "")]
    for context in analysis.contexts:
        lines += [(text, "red") for note in context.unmeasured for text in wrap(note, "! ")]
    for context in analysis.contexts:
        lines += _header(context, analysis.report)
        comparisons, summaries = _sorted_in(analysis.report, context)
        places = dict.fromkeys([*summaries, *comparisons])
        for cell in dict.fromkeys(cell for cell, _ in places):
            lines.append(("", ""))
            lines.append((f"── {cell_name(cell)} ".ljust(WIDTH, "─"), "bold"))
            for note in context.notes.get(cell, []):
                lines += [(text, "yellow") for text in wrap(note, "! ")]
            for metric in _in_order([m for of, m in places if of == cell], context):
                lines += _metric(
                    metric, comparisons.get((cell, metric), []), summaries.get((cell, metric), []), context
                )
        lines += render_findings(analysis.report, context.scenario)
        lines.append(("", ""))
    lines += pareto_lines(analysis.report.pareto or [])
    lines += asked_for(analysis.report)
    told = {note for context in analysis.contexts for note in (*cell_notes(context), *context.unmeasured)}
    for warning in dict.fromkeys(w for w in analysis.report.warnings if w not in told):
        lines += [(text, "yellow") for text in wrap(warning, "! ")]
    return lines


def _nothing(analysis: Analysis) -> str:
    """Return why no number is there: nothing was measured, or not what was asked for."""
    there = {metric for group in analysis.groups for _, _, metric in group.means}
    if not there:
        return "no request ended well and unflagged"
    names = [name for name in METRICS if name in there]
    return f"these runs hold no {' and no '.join(analysis.metrics)}; they hold {', '.join(names)}"


def asked_for(report: StatsReport) -> list[Line]:
    """Return the lines of what stands in the report only where a user or a scenario asked for it."""
    return [*_objectives(report), *decision_lines(report), *_plans(report)]


def _objectives(report: StatsReport) -> Iterator[Line]:
    if not report.slos:
        return
    yield "SLO objectives (MLPerf early stopping, 99 % confidence)", "bold"
    for slo in report.slos:
        name = f"p{slo.quantile * 100:g} {slo.metric} <= {slo.limit:g}"
        bound = f"bound {slo.bound:.4g}, n={slo.n}" if math.isfinite(slo.bound) else f"n={slo.n}, need {slo.needed}"
        style = {"pass": "green", "fail": "red"}.get(slo.verdict, "yellow")
        yield f"  {slo.verdict:<4}  {name}  {slo.engine}  ({bound})", style
        yield from ((text, "dim") for text in wrap(f"{slo.scenario}, {cell_name(slo.cell)}", "        "))
    yield "", ""


def _plans(report: StatsReport) -> Iterator[Line]:
    for plan in report.plans or []:
        yield f"plan for {plan.scenario}: find a difference of {show_percent(plan.detect)} in {plan.metric}", "bold"
        size = f"{plan.blocks} blocks × {plan.requests} requests, about {_duration(plan.seconds)}"
        how = plan.command or "ask as for this run, with"
        yield f"  {size}: {how} --blocks {plan.blocks} --requests {plan.requests}", ""
        for row in plan.rows:
            text = (
                f"{row.engine} / {row.baseline}, {cell_name(row.cell)}: launches differ by up to "
                f"{show_percent(row.between)}, requests by {show_percent(row.within)}; "
                f"best {math.ceil(row.best_requests)} requests a launch"
            )
            yield from ((line, "dim") for line in wrap(text, "  "))
        yield "", ""


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _header(context: Context, report: StatsReport) -> Iterator[Line]:
    runs = context.run_ids[0] + (f" and {len(context.run_ids) - 1} more" if len(context.run_ids) > 1 else "")
    yield f"{context.scenario}: {context.model}", "bold"
    yield from ((text, "") for text in wrap(f"run {runs}, {show_count(context.blocks, 'block')}", ""))
    for label, text in context.engines.items():
        role = "baseline; " if label == context.baseline else ""
        yield from ((line, "") for line in wrap(f"{label}  {role}{text}", "  "))
    yield from quality_lines(report.quality or [], context)
    yield "ratio = engine / baseline [95 % CI]; + faster, - slower, = equivalent, ~ open", "dim"


def _sorted_in(
    report: StatsReport, context: Context
) -> tuple[dict[Place, list[Comparison]], dict[Place, list[Summary]]]:
    """Return the rows of one group by where they are shown."""
    comparisons: dict[Place, list[Comparison]] = {}
    summaries: dict[Place, list[Summary]] = {}
    for c in report.comparisons:
        if c.scenario == context.scenario:
            comparisons.setdefault((c.cell, c.metric), []).append(c)
    for s in report.summaries:
        if s.scenario == context.scenario:
            summaries.setdefault((s.cell, s.metric), []).append(s)
    return comparisons, summaries


def _in_order(metrics: list[str], context: Context) -> list[str]:
    """Return metrics as they are shown: the primary one first, quantiles after what they are of."""
    names = list(METRICS)
    return sorted(metrics, key=lambda m: (m != context.primary_metric, names.index(metric_of(m).name), m))


def _metric(metric: str, comparisons: list[Comparison], summaries: list[Summary], context: Context) -> Iterator[Line]:
    kind = "primary" if metric == context.primary_metric else "exploratory"
    better = "higher is better" if metric_of(metric).higher_is_better else "lower is better"
    sizes = [abs(s.mean) for s in summaries if s.mean]
    apart = bool(sizes) and unit_for(metric, max(sizes))[1] != "" and max(sizes) > APART * min(sizes)
    unit, name = (1.0, "") if apart else unit_for(metric, max(sizes, default=0.0))
    yield "", ""
    yield f"{metric}  ({kind}; {better}{f'; shown in {name}' if name else ''})", "bold"
    for c in comparisons:
        yield from _comparison(c, context)
    if not summaries:
        return
    units = [unit_for(metric, abs(s.mean)) if apart else (unit, "") for s in summaries]
    means = [f"{three_digits(s.mean / u)} {own}".rstrip() for s, (u, own) in zip(summaries, units, strict=True)]
    intervals = [
        f"{mean:>{max(map(len, means))}} {show_interval(s.ci_low / u, s.ci_high / u)}"
        for s, mean, (u, _) in zip(summaries, means, units, strict=True)
    ]
    column = max(len(text) for text in intervals)
    # Whatever the names are, the line must fit.
    width = max(8, min(max(len(s.engine) for s in summaries), WIDTH - column - len("  " * 5) - 9 - 9 - 6))
    yield f"  {'':{width}}  {'mean [95 % CI]':<{column}}  {'p50':>9}  {'p90':>9}  {'CV':>6}", "dim"
    for s, interval, (u, _) in zip(summaries, intervals, units, strict=True):
        margin = "! " if s.engine in context.not_comparable or s.flagged else "  "
        p50, p90 = show_quantile(s.p50 / u, 0.5), show_quantile(s.p90 / u, 0.9)
        numbers = f"{p50:>9}  {p90:>9}  {show_percent(s.cv_launches):>6}"
        yield f"{margin}{shorten(s.engine, width):<{width}}  {interval:<{column}}  {numbers}", ""


def _comparison(c: Comparison, context: Context) -> Iterator[Line]:
    mark = {"faster": "+", "slower": "-", "equivalent": "="}.get(c.verdict, "~")
    ratio, limits = show_times(c.ratio), show_limits(c.ci_low, c.ci_high)
    names = c.engine if c.baseline == context.baseline else f"{c.engine} / {c.baseline}"
    head = f"{mark} {ratio}{limits}  {names}"
    words = short_words(c)
    style = _STYLES[c.verdict]
    if c.primary or len(head) + len(words) + 2 > WIDTH:
        yield head, style
        yield from ((line, "") for line in wrap(verdict_words(c) if c.primary else words, "    "))
    else:
        yield f"{head}  {words}", style
    if c.details:
        yield from ((line, "dim") for line in wrap(_details(c.details), "    "))
    for text in c.warnings:
        yield from ((line, "") for line in wrap(text, "    ! "))


def _details(d: Details) -> str:
    flips = f"sign-flip p{show_p(d.sign_flip_p)}; " if math.isfinite(d.sign_flip_p) else "unpaired; "
    return (
        f"{flips}equivalence p{show_p(d.equivalence_p)}; "
        f"Fieller [{three_digits(d.fieller_low)}, {three_digits(d.fieller_high)}]; "
        f"single values: P(below baseline) {d.request_below_baseline:.2f}, Cliff's delta {d.cliffs_delta:+.2f} "
        "(descriptive)"
    )


def short_words(c: Comparison) -> str:
    """Return the verdict of one comparison in a few words, with what is missing for a better one."""
    return f"{_short_words(c)}{_unproven_words(c)}"


def verdict_words(c: Comparison) -> str:
    """Return the verdict of one comparison as a person would say it, with the numbers it rests on."""
    return f"{_verdict_words(c)}{_unproven_words(c)}"


def _short_words(c: Comparison) -> str:
    match c.verdict:
        case "withheld":
            return f"withheld: {_missing(c) or 'flagged requests are counted'}"
        case "inconclusive" if not math.isfinite(c.ratio):
            return "no ratio"
        case "inconclusive":
            return f"inconclusive: {more_needed(c)}"
    return verdict_word(c.metric, c.verdict)


def _unproven_words(c: Comparison) -> str:
    """Return what is said behind a verdict on engines whose exactness is unproven; empty where it is proven."""
    return f"; {UNPROVEN}: {' and '.join(c.unproven)}" if c.unproven else ""


def _verdict_words(c: Comparison) -> str:
    correction = "Holm" if c.primary else "Benjamini-Hochberg"
    p = f"{correction} p{show_p(c.p_adjusted)}, " if math.isfinite(c.p_adjusted) else ""
    numbers = f"{p}n={c.n_launches}+{c.n_launches} launches" + (f" of {c.n_runs} runs" if c.n_runs else "")
    match c.verdict:
        case "faster" | "slower":
            return f"{verdict_word(c.metric, c.verdict)} ({numbers})"
        case "equivalent":
            return f"equivalent: a difference, if any, is inside the margin ({numbers})"
        case "withheld":
            missing = f"; {told}" if (told := _missing(c)) else ""
            if not told:
                return f"verdict withheld: flagged requests are counted ({numbers})"
            return f"verdict withheld: {_takes(c.metric)}{missing} ({numbers})"
    if not math.isfinite(c.ratio):
        return f"no ratio ({numbers})"
    mde = f"; this run can show {show_percent(c.mde)}" if math.isfinite(c.mde) else ""
    return f"inconclusive: {more_needed(c)}{mde} ({numbers})"


def _takes(metric: str) -> str:
    """Return what a verdict on a metric takes."""
    requests = metric_of(metric).requests_needed
    return f"it takes {LAUNCHES_NEEDED} launches" + (f" of {requests} valid requests" if requests > 1 else "")


def _missing(c: Comparison) -> str:
    """Return what a verdict lacks: launches, requests in each of them, or both."""
    launches = more_needed(c) if c.launches_needed else ""
    if not c.requests_needed:
        return launches
    have = c.n_samples / c.n_launches if c.n_launches else 0
    requests = f"{c.requests_needed} requests a launch needed, about {have:.0f} were valid"
    return f"{requests}, and {launches}" if launches else requests
