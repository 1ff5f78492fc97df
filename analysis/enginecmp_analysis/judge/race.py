"""A race between settings of one engine: who is dropped, when it is over, and who has won.

Like F-Race (Birattari, Stützle, Paquete, Varrentrapp 2002, GECCO): candidates run in blocks, and whoever is shown to
be worse than the leader runs no more. Two things differ. A paired one-sided t test against the leader takes the place
of Friedman's: block means are few and on a scale. And looking after every block is paid for, which F-Race leaves
open: at look j the level is alpha / ((K - 1) j (j + 1)) with K candidates. These sum to alpha over any number of
looks and candidates, so by Bonferroni the best candidate is dropped in at most a share alpha of all races, however long
they are and whoever leads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.judge.compare import NO_SPREAD, LogRatio, by_block, paired
from enginecmp_analysis.statistics.student import t_upper_tail

MIN_BLOCKS = 3
"""Before that nobody is dropped: a spread of two launches is no spread."""

Scores = Mapping[str, Mapping[int, float]]
"""Candidate → block → mean of its launch, positive, larger is better."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate beside the first one.

    Attributes:
        label: of the candidate.
        n: blocks that hold both.
        ratio: candidate / first of the scores; above 1 is better. NaN without common blocks.
        ci_low: lower 95 % limit, uncorrected; NaN with fewer than two blocks.
        ci_high: upper 95 % limit likewise.
        better_p: one-sided p of "no better than the first", uncorrected; NaN likewise.
    """

    label: str
    n: int
    ratio: float
    ci_low: float
    ci_high: float
    better_p: float


@dataclass(slots=True)
class Race:
    """Candidates, of which fewer and fewer are left.

    Attributes:
        labels: all of them; the first is the one to beat and wins ties, then the others in this order.
        alpha: largest probability that the best candidate is dropped.
        margin: candidates whose scores differ by less than this share are equivalent.
        alive: who still runs.
        dropped: who does not, and why.
        ended: why the race is over; empty while it is not.
    """

    labels: Sequence[str]
    alpha: float = 0.05
    margin: float = 0.03
    alive: list[str] = field(init=False)
    dropped: dict[str, str] = field(default_factory=dict)
    ended: str = ""
    _looks: int = 0
    _others: int = 0

    def __post_init__(self) -> None:
        self.alive = list(self.labels)

    def exclude(self, label: str, why: str) -> None:
        """Take a candidate out for a reason that is not its score."""
        if label in self.alive:
            self.alive.remove(label)
            self.dropped[label] = why
        self._end_if_one()

    def look(self, scores: Scores) -> None:
        """Judge what was measured so far; call once a block.

        Args:
            scores: of all blocks, dropped candidates included or not.
        """
        common = _common_blocks(scores, self.alive)
        if self.ended or len(common) < MIN_BLOCKS:
            return
        self._looks += 1
        self._others = self._others or len(self.alive) - 1
        level = self.alpha / (self._looks * (self._looks + 1))
        leader = self._leader(scores)
        close = True
        for label in [label for label in self.alive if label != leader]:
            ratio = _log_ratio(scores, label, leader)
            p = _one_sided_p(ratio)
            if p < level / self._others:
                self.alive.remove(label)
                self.dropped[label] = f"worse than {leader} after {ratio.n} blocks (p = {p:.1g})"
            elif not _equivalence_p(ratio, self.margin) < level:
                close = False
        self._end_if_one()
        if close and len(self.alive) > 1:
            self.ended = f"those left differ by less than {self.margin:.0%}"

    def stop(self, why: str) -> None:
        """End the race for a reason from outside, e.g. that its time is over."""
        self.ended = self.ended or why

    def winner(self, scores: Scores) -> str:
        """Return who has won: the first candidate unless it was dropped, else the leader of those that are left.

        Where those that are left were shown to be equivalent, the earliest label of them.
        """
        if not self.alive or self.labels[0] in self.alive:
            return self.labels[0]
        return self.alive[0] if self.ended.startswith("those left") else self._leader(scores)

    def standings(self, scores: Scores) -> list[Standing]:
        """Return every candidate beside the first one, in the order of `labels`."""
        return [_standing(label, _log_ratio(scores, self.labels[0], label)) for label in self.labels]

    def _leader(self, scores: Scores) -> str:
        blocks = _common_blocks(scores, self.alive)
        means = {label: np.mean([math.log(scores[label][b]) for b in blocks]) for label in self.alive}
        return max(self.alive, key=lambda label: means[label]) if blocks else self.alive[0]

    def _end_if_one(self) -> None:
        if len(self.alive) <= 1:
            self.ended = self.ended or "one is left"


def _common_blocks(scores: Scores, labels: Sequence[str]) -> list[int]:
    blocks = [set(scores.get(label, ())) for label in labels]
    return sorted(set.intersection(*blocks)) if blocks else []


def _log_ratio(scores: Scores, baseline: str, label: str) -> LogRatio:
    """Return log(label / baseline) over the blocks that hold both."""
    blocks = _common_blocks(scores, (baseline, label))
    return paired([scores[baseline][b] for b in blocks], [scores[label][b] for b in blocks])


def _one_sided_p(ratio: LogRatio) -> float:
    """Return the p of "no better than the other"; without any spread the sign decides."""
    if ratio.n < 2:
        return math.nan
    if not ratio.decidable:
        return 0.0 if ratio.estimate > NO_SPREAD else 1.0
    return float(t_upper_tail(ratio.estimate / ratio.se, ratio.df))


def _equivalence_p(ratio: LogRatio, margin: float) -> float:
    if ratio.n >= 2 and not ratio.decidable:
        return 0.0 if abs(ratio.estimate) <= math.log1p(margin) else 1.0
    return float(ratio.equivalence_p(margin))


def _standing(label: str, ratio: LogRatio) -> Standing:
    low, high = ratio.interval() if ratio.n > 1 else (math.nan, math.nan)
    return Standing(
        label=label,
        n=ratio.n,
        ratio=math.exp(float(ratio.estimate)) if ratio.n else math.nan,
        ci_low=float(low),
        ci_high=float(high),
        better_p=_one_sided_p(ratio),
    )


def scores_of(means: Mapping[Key, LaunchMeans], metric: str) -> dict[str, dict[int, float]]:
    """Return what a race judges: launch means turned so that larger is better, cells joined by geometric mean.

    A block in which an engine lacks a cell is left out: a mean over other cells is another number.

    Args:
        means: of one run.
        metric: what is raced for.
    """
    cells = {cell for _, cell, name in means if name == metric}
    found: dict[str, dict[int, float]] = {}
    for label in {label for label, _, name in means if name == metric}:
        parts = [by_block(means[label, cell, metric]) for cell in cells if (label, cell, metric) in means]
        whole = set.intersection(*(set(part) for part in parts)) if len(parts) == len(cells) else set()
        sign = 1 if METRICS[metric].higher_is_better else -1
        found[label] = {
            block[1]: math.exp(sign * sum(math.log(part[block]) for part in parts) / len(parts))
            for block in sorted(whole)
            if all(part[block] > 0 for part in parts)
        }
    return found
