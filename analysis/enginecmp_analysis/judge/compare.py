"""Two engines on one metric: the log ratio of their launch means, its interval and its p-values.

Everything works along the last axis, so that one call judges one comparison or thousands of simulated ones. Where
several runs are pooled, the run is what is repeated: launches of one run share its hour of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.data.launches import Block, LaunchMeans
from enginecmp_analysis.statistics.student import t_quantile, t_two_sided, t_upper_tail
from enginecmp_analysis.statistics.variance import group_means, same_level_p

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_SPREAD = 1e-12
"""A standard deviation of logs below this is rounding: the launches do not differ at all."""

PAIRED_SHARE = 0.8
"""Compare inside blocks as long as this share of the launches has its partner; else unpaired."""


@dataclass(frozen=True, slots=True)
class LogRatio:
    """An estimate of log(engine / baseline) that follows a t distribution.

    Attributes:
        estimate: mean log ratio.
        se: its standard error; 0 when the launches show no spread, NaN with fewer than two.
        df: degrees of freedom.
        n: pairs of launches, or launches of the smaller side when unpaired.
        method: "paired" inside blocks (several runs: inside runs), or "welch" between all launches.
        runs: 1, or the runs on which the interval rests where several are pooled.
    """

    estimate: Floats
    se: Floats
    df: Floats
    n: int
    method: Literal["paired", "welch"]
    runs: int = 1

    @property
    def decidable(self) -> NDArray[np.bool_]:
        """Whether there is any spread to judge by."""
        return np.isfinite(self.estimate) & (self.se > NO_SPREAD)

    def interval(self, confidence: float = 0.95) -> tuple[Floats, Floats]:
        """Return the two-sided interval of the ratio (not its log), NaN where not decidable."""
        half = t_quantile(0.5 + confidence / 2, self.df) * np.where(self.decidable, self.se, np.nan)
        return np.exp(self.estimate - half), np.exp(self.estimate + half)

    def p_value(self) -> Floats:
        """Return the two-sided p of "the ratio is 1", NaN where not decidable."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.decidable, t_two_sided(self.estimate / self.se, self.df), np.nan)

    def equivalence_p(self, margin: float) -> Floats:
        """Return the p of "the ratio is outside (1 / (1 + margin), 1 + margin)": two one-sided t tests.

        Schuirmann 1987. The margin is symmetric in logs, so swapping the engines changes nothing.
        """
        limit = np.log1p(margin)
        with np.errstate(divide="ignore", invalid="ignore"):
            above = t_upper_tail((self.estimate + limit) / self.se, self.df)
            below = t_upper_tail((limit - self.estimate) / self.se, self.df)
        return np.where(self.decidable, np.maximum(above, below), np.nan)


def paired(baseline: ArrayLike, engine: ArrayLike) -> LogRatio:
    """Judge launch means block by block: a t on d_b = log(engine_b / baseline_b).

    Args:
        baseline: (..., B) positive launch means.
        engine: (..., B) those of the same blocks.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.log(np.asarray(engine, dtype=np.float64)) - np.log(np.asarray(baseline, dtype=np.float64))
    n = d.shape[-1]
    nothing = np.full(d.shape[:-1], np.nan)
    if n == 0:
        return LogRatio(nothing, nothing, nothing, 0, "paired")
    # A mean of zero has no logarithm; what comes of it is not finite, and so not decidable.
    with np.errstate(invalid="ignore"):
        estimate = np.asarray(d.mean(axis=-1))
        se = d.std(axis=-1, ddof=1) / np.sqrt(n) if n > 1 else nothing
    return LogRatio(estimate, se, np.full(d.shape[:-1], n - 1.0), n, "paired")


def welch(baseline: ArrayLike, engine: ArrayLike) -> LogRatio:
    """Judge launch means without pairing: Welch's t on their logs, Satterthwaite's degrees of freedom.

    Args:
        baseline: (..., A) positive launch means.
        engine: (..., B) positive launch means.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = np.log(np.asarray(baseline, dtype=np.float64)), np.log(np.asarray(engine, dtype=np.float64))
    n = min(a.shape[-1], b.shape[-1])
    nothing = np.full(a.shape[:-1], np.nan)
    if n == 0:
        return LogRatio(nothing, nothing, nothing, 0, "welch")
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = b.mean(axis=-1) - a.mean(axis=-1)
        if n == 1:
            return LogRatio(estimate, nothing, nothing, n, "welch")
        va, vb = a.var(axis=-1, ddof=1) / a.shape[-1], b.var(axis=-1, ddof=1) / b.shape[-1]
        df = (va + vb) ** 2 / (va**2 / (a.shape[-1] - 1) + vb**2 / (b.shape[-1] - 1))
    return LogRatio(estimate, np.sqrt(va + vb), np.asarray(df), n, "welch")


@dataclass(frozen=True, slots=True)
class Matched:
    """Launch means of two engines, ready to compare.

    Attributes:
        baseline: launch means of the baseline.
        engine: launch means of the engine, in the same blocks when `paired`.
        paired: whether entry i of both is of the same block.
        left_out: launches that have no partner and therefore do not count (0 when unpaired).
        baseline_runs: number of the run of each entry.
        engine_runs: likewise.
    """

    baseline: Floats
    engine: Floats
    paired: bool
    left_out: int
    baseline_runs: Ints
    engine_runs: Ints

    def log_ratio(self) -> LogRatio:
        """Compare them: over launches of one run, over runs where several are pooled.

        Launches of a run share what only that run has, so a spread from run to run is invisible between them. The
        mean of each run is one value, whatever its number of launches: Student's t on such means keeps its level
        however much runs differ, and in how many launches (Ibragimov & Mueller 2010, JBES 28(4), 453-468).
        """
        whole = self.replicates()
        found = whole.of_launches()
        runs = min(len(whole.baseline), len(whole.engine)) if whole is not self else 1
        return replace(found, n=min(len(self.baseline), len(self.engine)), runs=runs)

    def of_launches(self) -> LogRatio:
        """Compare them over launches, whatever run they are of."""
        return paired(self.baseline, self.engine) if self.paired else welch(self.baseline, self.engine)

    def replicates(self) -> Matched:
        """Return the geometric mean of each run where several are pooled, else this."""
        shared = np.intersect1d(self.baseline_runs, self.engine_runs)
        runs_a, runs_b = np.unique(self.baseline_runs), np.unique(self.engine_runs)
        # Inside a run the engines share the hour, block by block or not.
        within = self.paired or len(shared) >= PAIRED_SHARE * min(len(runs_a), len(runs_b))
        runs_a, runs_b = (shared, shared) if within else (runs_a, runs_b)
        if min(len(runs_a), len(runs_b)) < 2:
            return self
        a, b = np.isin(self.baseline_runs, runs_a), np.isin(self.engine_runs, runs_b)
        with np.errstate(divide="ignore"):
            means_a = np.exp(group_means(np.log(self.baseline[a]), self.baseline_runs[a]))
            means_b = np.exp(group_means(np.log(self.engine[b]), self.engine_runs[b]))
        return Matched(means_a, means_b, within, self.left_out, runs_a, runs_b)

    def runs_agree_p(self) -> float:
        """Return the p of "the ratio is the same in every run" (F of the interaction); NaN where nothing tells."""
        if not self.paired:
            return math.nan
        with np.errstate(divide="ignore", invalid="ignore"):
            return same_level_p(np.log(self.engine) - np.log(self.baseline), self.baseline_runs)


def match(baseline: LaunchMeans, engine: LaunchMeans) -> Matched:
    """Match launches by block; where too few blocks hold both engines, give up pairing.

    The choice rests on which launches exist, never on their values.
    """
    a, b = by_block(baseline), by_block(engine)
    both = [block for block in a if block in b]
    if len(both) >= PAIRED_SHARE * min(len(a), len(b)):
        left_out = len(a) + len(b) - 2 * len(both)
        return Matched(_take(a, both), _take(b, both), True, left_out, _runs(both), _runs(both))
    return Matched(_take(a, list(a)), _take(b, list(b)), False, 0, _runs(list(a)), _runs(list(b)))


def apart(before: LaunchMeans, after: LaunchMeans) -> Matched:
    """Return the launches of runs that are on one side each, whatever numbers they have there."""
    a, b = by_block(before), by_block(after)
    beyond = 1 + max((run for run, _ in a), default=0)
    return Matched(_take(a, list(a)), _take(b, list(b)), False, 0, _runs(list(a)), _runs(list(b)) + beyond)


def by_block(launches: LaunchMeans) -> dict[Block, float]:
    """Return the mean of each block, sorted by block; two launches of one block count as one."""
    found: dict[Block, list[float]] = {}
    for block, mean in zip(launches.blocks, launches.means.tolist(), strict=True):
        found.setdefault(block, []).append(mean)
    return {block: sum(found[block]) / len(found[block]) for block in sorted(found)}


def _runs(blocks: Sequence[Block]) -> Ints:
    return np.array([run for run, _ in blocks], dtype=np.int64)


def _take(means: Mapping[Block, float], blocks: Sequence[Block]) -> Floats:
    return np.array([means[block] for block in blocks], dtype=np.float64)
