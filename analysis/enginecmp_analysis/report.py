"""From runs to verdicts: every step of the analysis, in order."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple

import numpy as np

from enginecmp.errors import ResultsError, UsageError, did_you_mean
from enginecmp.types import Cell
from enginecmp_analysis.columns import KEPT, MEASURE
from enginecmp_analysis.compare import LogRatio, Matched, match
from enginecmp_analysis.fingerprint import Group, group_runs
from enginecmp_analysis.launches import Key, LaunchMeans, launch_means, measured
from enginecmp_analysis.load import Run
from enginecmp_analysis.metrics import METRICS, find_metric
from enginecmp_analysis.multiplicity import benjamini_hochberg, bonferroni_confidence, holm
from enginecmp_analysis.power import launches_needed, minimum_detectable_effect
from enginecmp_analysis.quantiles import quantiles_or_nan
from enginecmp_analysis.schema import Comparison, StatsReport, Summary
from enginecmp_analysis.student import mean_interval
from enginecmp_analysis.verdict import MIN_LAUNCHES, MIN_REQUESTS, Evidence, decide

NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True, slots=True)
class Options:
    """What a reader may choose; everything else is fixed before the run.

    Attributes:
        baseline: label to compare with; None takes the run's own.
        pairs: compare all engines with each other.
        metrics: names to look at; empty means all.
        margin: relative equivalence margin.
        alpha: level of tests and (as 1 - alpha) of intervals.
        include_flagged: count flagged samples too; verdicts are then withheld.
    """

    baseline: str | None = None
    pairs: bool = False
    metrics: tuple[str, ...] = ()
    margin: float = 0.03
    alpha: float = 0.05
    include_flagged: bool = False


@dataclass(slots=True)
class Context:
    """What stands above a table.

    Attributes:
        scenario: name, made unique where groups share it.
        model: name and quantization.
        run_ids: the pooled runs.
        baseline: label compared with.
        primary_metric: name of the metric declared to decide on, "" when none was.
        engines: label to a short description: version, device, and how it passed the equivalence gate.
        not_comparable: labels that are listed but not compared.
        blocks: blocks of all pooled runs.
    """

    scenario: str
    model: str
    run_ids: list[str]
    baseline: str
    primary_metric: str
    engines: dict[str, str]
    not_comparable: list[str]
    blocks: int


@dataclass(slots=True)
class Analysis:
    """The report, and what a table needs around it."""

    report: StatsReport
    contexts: list[Context] = field(default_factory=list)


class _Candidate(NamedTuple):
    """A comparison before correction."""

    key: Key
    baseline: str
    primary: bool
    found: LogRatio
    matched: Matched
    engine_means: LaunchMeans
    full_launches: int


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
    groups, split = group_runs(runs)
    labels = _scenario_labels(groups)
    if options.baseline is not None:
        known = {engine.name for run in runs for engine in run.manifest.engines}
        if options.baseline not in known:
            msg = f"unknown baseline '{options.baseline}'{did_you_mean(options.baseline, known)}"
            raise UsageError(msg)
    report = StatsReport(comparisons=[], summaries=[], warnings=[w for run in runs for w in run.warnings] + split)
    contexts = []
    for group, scenario in zip(groups, labels, strict=True):
        contexts.append(_analyse_group(group, scenario, options, report))
    report.comparisons.sort(key=lambda c: not c.primary)
    return Analysis(report, contexts)


def _analyse_group(group: Group, scenario: str, options: Options, report: StatsReport) -> Context:
    context = _context(group, scenario, options, report.warnings)
    keep = [measured(run.columns, include_flagged=options.include_flagged) for run in group.runs]
    report.warnings += exclusions(group.runs, include_flagged=options.include_flagged)
    means = launch_means(group.runs, options.metrics or METRICS, keep)
    order = {name: i for i, name in enumerate(context.engines)}
    metric_order = {name: i for i, name in enumerate(METRICS)}
    cells: list[Cell | None] = sorted({k[1] for k in means if k[1] is not None}, key=_cell_order)
    cells.append(None)
    keys = sorted(means, key=lambda k: (cells.index(k[1]), metric_order[k[2]], order[k[0]]))
    report.summaries += [_summary(scenario, key, means[key]) for key in keys]
    candidates = [
        _candidate((engine, cell, metric), baseline, means, context.primary_metric)
        for cell in cells
        for metric in METRICS
        for baseline, engine in _pairs(context, options.pairs)
        if (engine, cell, metric) in means and (baseline, cell, metric) in means
    ]
    report.comparisons += _judge(scenario, candidates, options)
    return context


def _pairs(context: Context, every: bool) -> list[tuple[str, str]]:
    labels = [label for label in context.engines if label not in context.not_comparable]
    if every:
        return list(combinations(labels, 2))
    return [(context.baseline, label) for label in labels if label != context.baseline and context.baseline in labels]


def _candidate(key: Key, baseline: str, means: dict[Key, LaunchMeans], primary_metric: str) -> _Candidate:
    engine, cell, metric = key
    a, b = means[baseline, cell, metric], means[engine, cell, metric]
    matched = match(a, b)
    least = 1 if metric == "load_seconds" else MIN_REQUESTS
    return _Candidate(
        key=key,
        baseline=baseline,
        primary=metric == primary_metric,
        found=matched.log_ratio(),
        matched=matched,
        engine_means=b,
        full_launches=_full_launches(a, b, matched, least),
    )


def _full_launches(a: LaunchMeans, b: LaunchMeans, matched: Matched, least: int) -> int:
    """Return the launches with at least `least` requests: pairs of them when paired, else of the smaller side."""
    full_a = {block for block, n in zip(a.blocks, a.requests.tolist(), strict=True) if n >= least}
    full_b = {block for block, n in zip(b.blocks, b.requests.tolist(), strict=True) if n >= least}
    return len(full_a & full_b) if matched.paired else min(len(full_a), len(full_b))


def _judge(scenario: str, candidates: Sequence[_Candidate], options: Options) -> list[Comparison]:
    p = np.array([float(c.found.p_value()) for c in candidates])
    tost = np.array([float(c.found.equivalence_p(options.margin)) for c in candidates])
    primary = np.array([c.primary for c in candidates], dtype=bool)
    p_adjusted, tost_adjusted = np.full(len(p), np.nan), np.full(len(p), np.nan)
    for family, correct in ((primary, holm), (~primary, benjamini_hochberg)):
        p_adjusted[family], tost_adjusted[family] = correct(p[family]), correct(tost[family])
    size = max(1, int(np.isfinite(p[primary]).sum()))
    return [
        _comparison(scenario, c, float(p[i]), float(p_adjusted[i]), float(tost_adjusted[i]), size, options)
        for i, c in enumerate(candidates)
    ]


def _comparison(
    scenario: str, c: _Candidate, p: float, p_adjusted: float, tost: float, family: int, options: Options
) -> Comparison:
    engine, cell, metric = c.key
    confidence = 1 - options.alpha
    low, high = (float(limit) for limit in c.found.interval(confidence))
    sci = c.found.interval(bonferroni_confidence(confidence, family)) if c.primary else (math.nan, math.nan)
    evidence = Evidence(
        log_ratio=float(c.found.estimate),
        ci_low=low,
        ci_high=high,
        p_adjusted=p_adjusted,
        equivalence_p_adjusted=tost,
        higher_is_better=METRICS[metric].higher_is_better,
        full_launches=c.full_launches,
    )
    verdict: str = "withheld" if options.include_flagged else decide(evidence, alpha=options.alpha)
    # A verdict of the family must pass at the family's level, and so must the plan for one.
    alpha = options.alpha / family if c.primary else options.alpha
    needed: int | None = 0
    if verdict == "withheld":
        needed = max(0, MIN_LAUNCHES - c.full_launches) or None
    elif verdict == "inconclusive":
        needed = launches_needed(c.found, options.margin, alpha)
    return Comparison(
        scenario=scenario,
        cell=cell,
        metric=metric,
        primary=c.primary,
        baseline=c.baseline,
        engine=engine,
        n_launches=c.found.n,
        n_samples=int(c.engine_means.requests.sum()),
        ratio=math.exp(evidence.log_ratio) if math.isfinite(evidence.log_ratio) else math.nan,
        ci_low=low,
        ci_high=high,
        sci_low=float(sci[0]),
        sci_high=float(sci[1]),
        p_value=p,
        p_adjusted=p_adjusted,
        verdict=verdict,
        mde=minimum_detectable_effect(c.found, alpha),
        launches_needed=needed,
        warnings=_comparison_warnings(c, verdict, options),
    )


def _comparison_warnings(c: _Candidate, verdict: str, options: Options) -> list[str]:
    notes = []
    if not math.isfinite(float(c.found.estimate)):
        notes.append("a launch mean is zero: the clock did not resolve it, so there is no ratio")
    elif c.found.n > 1 and not bool(c.found.decidable):
        notes.append("the launches show no spread at all: a clock too coarse, or numbers that were not measured")
    if not c.matched.paired:
        notes.append("engines do not share blocks: launches are compared unpaired, drift between them is not cancelled")
    elif c.matched.left_out:
        notes.append(f"{c.matched.left_out} launches without a partner in their block are left out")
    if verdict in ("faster", "slower") and abs(float(c.found.estimate)) < math.log1p(options.margin):
        notes.append(f"the difference is real but smaller than the ±{options.margin:.0%} that counts as equivalent")
    return notes


def _summary(scenario: str, key: Key, launches: LaunchMeans) -> Summary:
    engine, cell, metric = key
    mean, low, high = mean_interval(launches.means)
    spread = float(launches.means.std(ddof=1)) / float(mean) if len(launches.means) > 1 and mean > 0 else math.nan
    p50, p90, p95, p99 = quantiles_or_nan(launches.values)
    return Summary(
        scenario=scenario,
        engine=engine,
        cell=cell,
        metric=metric,
        n_launches=len(launches.means),
        n_samples=int(launches.requests.sum()),
        mean=float(mean),
        ci_low=float(low),
        ci_high=float(high),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        cv_launches=spread,
    )


def exclusions(runs: Iterable[Run], *, include_flagged: bool = False) -> list[str]:
    """Return one sentence an engine that lost samples: how many of how many, and why."""
    lost: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for run in runs:
        columns = run.columns
        phase = columns.phase == MEASURE
        for code, label in enumerate(columns.engines):
            mine = phase & (columns.engine == code)
            total[label] += int(mine.sum())
            for reason in np.unique(columns.excluded[mine]).tolist():
                if reason != KEPT:
                    count = int((columns.excluded[mine] == reason).sum())
                    lost.setdefault(label, Counter())[columns.reasons[reason]] += count
    verb = "flagged or failed" if include_flagged else "left out"
    return [
        f"{label}: {sum(reasons.values())} of {total[label]} measured requests {verb}: "
        + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        for label, reasons in lost.items()
    ]


def _context(group: Group, scenario: str, options: Options, warnings: list[str]) -> Context:
    first = group.runs[0].manifest
    engines: dict[str, str] = {}
    not_comparable: list[str] = []
    baseline = options.baseline or first.baseline
    for run in group.runs:
        for engine in run.manifest.engines:
            verdicts = {e.verdict for e in run.manifest.equivalence if e.engine == engine.name}
            if NOT_COMPARABLE in verdicts and engine.name not in not_comparable:
                not_comparable.append(engine.name)
            checked = NOT_COMPARABLE if engine.name in not_comparable else _gate(verdicts)
            engines.setdefault(engine.name, f"{engine.version}, {engine.device}, {checked}")
    # The baseline first: everything is read against it.
    engines = {k: engines[k] for k in sorted(engines, key=lambda label: label != baseline)}
    for label in not_comparable:
        warnings.append(f"{label} does not compute the same as the reference: its numbers are shown, not compared")
    if baseline not in engines or baseline in not_comparable:
        why = "is not comparable" if baseline in engines else "is in none of these runs"
        warnings.append(f"baseline {baseline} {why}: nothing is compared with it; choose another with --baseline")
    if any("not checked" in text for text in engines.values()):
        unchecked = ", ".join(label for label, text in engines.items() if "not checked" in text)
        warnings.append(f"not checked for equivalence: {unchecked}; the engines may not compute the same thing")
    primary = str(first.scenario.get("primary_metric", ""))
    if primary not in METRICS:
        told = f"unknown primary metric '{primary}'" if primary else "no primary metric declared"
        warnings.append(f"scenario {scenario}: {told}; every comparison is exploratory")
        primary = ""
    blocks = sum(len(np.unique(run.columns.block)) for run in group.runs)
    model = f"{first.model.name} ({first.model.quantization})" if first.model.quantization else first.model.name
    ids = [run.manifest.run_id for run in group.runs]
    return Context(scenario, model, ids, baseline, primary, engines, not_comparable, blocks)


def _gate(verdicts: set[str]) -> str:
    if not verdicts or "not checked" in verdicts:
        return "equivalence not checked"
    return "reference" if verdicts == {"reference"} else "equivalent"


def _scenario_labels(groups: Sequence[Group]) -> list[str]:
    """Return scenario names; where groups share one, with the first run's id, so that none can be mixed up."""
    names = [str(group.runs[0].manifest.scenario.get("name", "unnamed")) for group in groups]
    return [
        name if names.count(name) == 1 else f"{name} @ {group.runs[0].manifest.run_id}"
        for name, group in zip(names, groups, strict=True)
    ]


def _cell_order(cell: Cell | None) -> tuple[int, int, int]:
    return (cell.prompt_tokens, cell.output_tokens, cell.concurrency) if cell else (1 << 62, 0, 0)
