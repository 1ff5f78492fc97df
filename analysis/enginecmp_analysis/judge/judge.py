"""Comparisons of one group: matched, tested, corrected, put into words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np

from enginecmp.format.enough import LAUNCHES_NEEDED, REQUESTS_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.levels import Levels
from enginecmp_analysis.data.metrics import Metric, is_metric, metric_of
from enginecmp_analysis.judge.compare import LogRatio, Matched, match
from enginecmp_analysis.judge.power import launches_needed, minimum_detectable_effect
from enginecmp_analysis.judge.verdict import Evidence, decide
from enginecmp_analysis.schema.stats import Comparison, Details
from enginecmp_analysis.statistics.fieller import fieller
from enginecmp_analysis.statistics.multiplicity import benjamini_hochberg, bonferroni_confidence, holm
from enginecmp_analysis.statistics.permutation import sign_flip_p
from enginecmp_analysis.statistics.ranks import rank_effect

RUNS = Levels()

RUNS_DISAGREE = 0.01
"""Runs are said to disagree below this p of "one ratio in all of them"."""

SHAPES_DIFFER = 0.25
"""Fieller's limits are told when they are off the log interval by more than this share of its width."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a reader may choose; everything else is fixed before the run.

    Attributes:
        baseline: label to compare with; None takes the run's own.
        pairs: compare all engines with each other.
        metrics: names to look at; empty means all.
        quantiles: compare quantiles of launches too.
        margin: relative equivalence margin.
        alpha: level of tests and (as 1 - alpha) of intervals.
        include_flagged: count flagged samples too; verdicts are then withheld.
        details: sensitivity checks and effect sizes for every comparison.
        warmup_floor: requests to cut at the start of every launch in any case.
        cuts: requests to cut at least in a cell, so that runs compared with each other are cut alike.
    """

    baseline: str | None = None
    pairs: bool = False
    metrics: tuple[str, ...] = ()
    quantiles: bool = False
    margin: float = 0.03
    alpha: float = 0.05
    include_flagged: bool = False
    details: bool = False
    warmup_floor: int = 0
    cuts: Mapping[Cell, int] = field(default_factory=dict)


class Candidate(NamedTuple):
    """A comparison before correction."""

    key: Key
    baseline: str
    primary: bool
    higher_is_better: bool
    found: LogRatio
    matched: Matched
    baseline_means: LaunchMeans
    engine_means: LaunchMeans
    full_launches: int
    requests_missing: bool


def candidates(
    means: Mapping[Key, LaunchMeans],
    pairs: Sequence[tuple[str, str]],
    cells: Sequence[Cell | None],
    metrics: Sequence[str],
    primary_metric: str,
    find: Callable[[str], Metric] = metric_of,
) -> list[Candidate]:
    """Match every pair of engines wherever both have launches; `find` tells what a metric of that name is."""
    return [
        _candidate(find(metric), metric, cell, pair, means, primary_metric)
        for cell in cells
        for metric in metrics
        for pair in pairs
        if all((label, cell, metric) in means for label in pair)
    ]


def _candidate(
    kind: Metric,
    metric: str,
    cell: Cell | None,
    pair: tuple[str, str],
    means: Mapping[Key, LaunchMeans],
    primary_metric: str,
) -> Candidate:
    a, b = (means[label, cell, metric] for label in pair)
    matched = match(a, b)
    return Candidate(
        key=(pair[1], cell, metric),
        baseline=pair[0],
        primary=metric == primary_metric,
        higher_is_better=kind.higher_is_better,
        found=matched.log_ratio(),
        matched=matched,
        baseline_means=a,
        engine_means=b,
        full_launches=full_launches(a, b, matched, least_requests(metric)),
        requests_missing=min(_typical_requests(a), _typical_requests(b)) < least_requests(metric),
    )


def least_requests(metric: str) -> int:
    """Return how many requests a launch needs before its value of a metric counts for a verdict."""
    return metric_of(metric).requests_needed if is_metric(metric) else REQUESTS_NEEDED


def _typical_requests(launches: LaunchMeans) -> float:
    """Return the median number of requests of a launch; infinite where its mean alone is known."""
    counts = [
        n for block, n in zip(launches.blocks, launches.requests.tolist(), strict=True) if block not in launches.told
    ]
    return float(np.median(counts)) if counts else math.inf


def full_launches(a: LaunchMeans, b: LaunchMeans, matched: Matched, least: int) -> int:
    """Return the launches that count for a verdict: pairs of them when paired, else of the smaller side."""
    full_a, full_b = a.full(least), b.full(least)
    return len(full_a & full_b) if matched.paired else min(len(full_a), len(full_b))


def judge(scenario: str, family: Sequence[Candidate], options: Options, levels: Levels = RUNS) -> list[Comparison]:
    """Correct the p-values of all comparisons of a group and give each its verdict.

    The primary family is corrected by Holm's method, for differences and for equivalences alike; the rest by
    Benjamini and Hochberg's, and is exploratory.

    Args:
        scenario: label of the group.
        family: its comparisons.
        options: what to look at.
        levels: what is repeated where several runs are pooled.
    """
    p = np.array([float(c.found.p_value()) for c in family])
    tost = np.array([float(c.found.equivalence_p(options.margin)) for c in family])
    primary = np.array([c.primary for c in family], dtype=bool)
    p_adjusted, tost_adjusted = np.full(len(p), np.nan), np.full(len(p), np.nan)
    for members, correct in ((primary, holm), (~primary, benjamini_hochberg)):
        p_adjusted[members], tost_adjusted[members] = correct(p[members]), correct(tost[members])
    size = max(1, int(np.isfinite(p[primary]).sum()))
    return [
        _comparison(scenario, c, float(p[i]), float(p_adjusted[i]), float(tost_adjusted[i]), size, options, levels)
        for i, c in enumerate(family)
    ]


def _comparison(
    scenario: str,
    c: Candidate,
    p: float,
    p_adjusted: float,
    tost: float,
    family: int,
    options: Options,
    levels: Levels,
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
        higher_is_better=c.higher_is_better,
        full_launches=c.full_launches,
    )
    verdict: str = "withheld" if options.include_flagged else decide(evidence, alpha=options.alpha)
    # A verdict of the family must pass at the family's level, and so must the plan for one.
    alpha = options.alpha / family if c.primary else options.alpha
    needed: int | None = 0
    if verdict == "withheld" and not options.include_flagged:
        # Where most launches are short of requests, more of the same launches would never do.
        have = c.found.n if c.requests_missing else c.full_launches
        needed = max(0, LAUNCHES_NEEDED - have) or (0 if c.requests_missing else None)
    elif verdict == "inconclusive":
        needed = launches_needed(c.found, options.margin, alpha)
    several = verdict == "inconclusive" and c.found.runs > 1
    comparison = Comparison(
        scenario=scenario,
        cell=cell,
        metric=metric,
        primary=c.primary,
        baseline=c.baseline,
        engine=engine,
        n_launches=c.found.n,
        n_runs=c.found.runs if c.found.runs > 1 else msgspec.UNSET,
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
        launches_needed=0 if several else needed,
        runs_needed=needed if several else msgspec.UNSET,
        requests_needed=least_requests(metric) if verdict == "withheld" and c.requests_missing else 0,
        warnings=_warnings(c, verdict, options, levels),
    )
    if c.primary or options.details:
        details = _details(c, options)
        comparison.warnings += _sensitivity(comparison, details, options.alpha)
        if options.details:
            comparison.details = details
    return comparison


def levels_disagree(matched: Matched, levels: Levels) -> str:
    """Return how the ratio differs between pooled runs or nodes, where it was shown to; else "".

    Args:
        matched: launches of the pair.
        levels: the runs or nodes.
    """
    p = matched.runs_agree_p()
    if not p < RUNS_DISAGREE:
        return ""
    runs = matched.replicates()
    ratios = runs.engine / runs.baseline
    low, high = int(np.argmin(ratios)), int(np.argmax(ratios))
    names = [levels.name(number) for number in runs.engine_runs.tolist()]
    shown, where = "<0.001" if p < 0.001 else f"={p:.3f}", "on" if levels.noun == "node" else "in"
    return (
        f"{levels.noun}s disagree (p{shown}): the ratio is {ratios[low]:.3g} {where} {names[low]} "
        f"and {ratios[high]:.3g} {where} {names[high]}"
    )


def _warnings(c: Candidate, verdict: str, options: Options, levels: Levels) -> list[str]:
    notes = []
    if told := levels_disagree(c.matched, levels):
        notes.append(f"{told}; the interval rests on {c.found.runs} {levels.noun}s, not on their launches")
    if not math.isfinite(float(c.found.estimate)):
        notes.append(_no_ratio(c))
    elif c.found.n > 1 and not bool(c.found.decidable):
        notes.append("the launches show no spread at all: a clock too coarse, or numbers that were not measured")
    if not c.matched.paired:
        notes.append("engines do not share blocks: launches are compared unpaired, drift between them is not cancelled")
    elif c.matched.left_out:
        launches = "launch" if c.matched.left_out == 1 else "launches"
        notes.append(f"{c.matched.left_out} {launches} without a partner in the block left out")
    if verdict in ("faster", "slower") and abs(float(c.found.estimate)) < math.log1p(options.margin):
        notes.append(
            f"the difference is real but smaller than the ±{100 * options.margin:.0f} % that counts as equivalent"
        )
    return notes


def _no_ratio(c: Candidate) -> str:
    """Return why a comparison has no ratio: whose launch means are zero, and what that says of the metric."""
    sides = ((c.baseline, c.matched.baseline), (c.key[0], c.matched.engine))
    counts = {name: int((means <= 0).sum()) for name, means in sides}
    zero = ", ".join(f"{name} in {counts[name]} of {len(means)} launches" for name, means in sides if counts[name])
    if not zero:
        return "there is no ratio: the engines share no launch"
    goodput = c.key[2].startswith("goodput_") or c.key[2] == "requests_per_device_hour_at_slo"
    what = "no request kept the limits" if goodput else "the value is zero"
    return f"there is no ratio: {what} ({zero})"


def _details(c: Candidate, options: Options) -> Details:
    matched = c.matched.replicates()
    a, b = matched.baseline, matched.engine
    _, low, high = fieller(a, b, 1 - options.alpha, paired=matched.paired)
    # The first set is the engine's: "below" is how often one of its values is smaller than one of the baseline's.
    effect = rank_effect(c.engine_means.values, c.baseline_means.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        flips = sign_flip_p(np.log(b) - np.log(a)) if matched.paired else math.nan
    return Details(
        method=c.found.method,
        sign_flip_p=flips,
        equivalence_p=float(c.found.equivalence_p(options.margin)),
        # Both means are above zero, and so is their ratio, whatever the limits of the theorem.
        fieller_low=max(0.0, float(low)) if math.isfinite(float(low)) else math.nan,
        fieller_high=float(high),
        request_below_baseline=effect.below,
        cliffs_delta=effect.cliffs_delta,
    )


def _sensitivity(c: Comparison, details: Details, alpha: float) -> list[str]:
    """Return where another sound method says otherwise."""
    notes = []
    # Below six blocks (or runs) no pattern of signs is rare enough, which says nothing.
    if (
        (c.n_runs or c.n_launches) >= 6
        and math.isfinite(details.sign_flip_p)
        and (details.sign_flip_p < alpha) != (c.p_value < alpha)
    ):
        notes.append(f"sign-flip permutation disagrees with t: p={details.sign_flip_p:.3f} against {c.p_value:.3f}")
    width = c.ci_high - c.ci_low
    off = max(abs(details.fieller_low - c.ci_low), abs(details.fieller_high - c.ci_high))
    if off > SHAPES_DIFFER * width:
        notes.append(
            f"the engines spread differently: the ratio of plain means has [{details.fieller_low:.3f}, "
            f"{details.fieller_high:.3f}] (Fieller)"
        )
    return notes
