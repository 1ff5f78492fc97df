"""Ranks of single values: an effect size that is easy to picture, and the exact rank test.

Both treat values as independent. Requests of one launch are not, so the effect size is descriptive, and the test
is for values that really are one a launch, or for files that hold nothing better (and say so).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

EXACT_UP_TO = 50
"""Largest sample (of both) for which all arrangements are counted."""


@dataclass(frozen=True, slots=True)
class RankEffect:
    """How two sets of values lie to each other.

    Attributes:
        below: P(first < second) + P(equal) / 2: 0.5 when neither tends to be smaller.
        cliffs_delta: P(first < second) - P(first > second), -1..1.
    """

    below: float
    cliffs_delta: float


def rank_effect(first: ArrayLike, second: ArrayLike) -> RankEffect:
    """Return the probability that a value of the first set lies below one of the second, and Cliff's delta."""
    smaller, larger, pairs = _order(first, second)
    if pairs == 0:
        return RankEffect(math.nan, math.nan)
    return RankEffect((smaller + (pairs - smaller - larger) / 2) / pairs, (smaller - larger) / pairs)


def u_statistic(first: ArrayLike, second: ArrayLike) -> float:
    """Return Mann and Whitney's U of the first set: pairs in which it is larger, ties counted half."""
    smaller, larger, pairs = _order(first, second)
    return larger + (pairs - smaller - larger) / 2


def _order(first: ArrayLike, second: ArrayLike) -> tuple[int, int, int]:
    """Return in how many pairs the first is smaller, in how many larger, and how many there are."""
    a, b = np.sort(np.asarray(first, dtype=np.float64)), np.asarray(second, dtype=np.float64)
    smaller = int(np.searchsorted(a, b, side="left").sum())
    larger = len(a) * len(b) - int(np.searchsorted(a, b, side="right").sum())
    return smaller, larger, len(a) * len(b)


def rank_test_p(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p of "both sets come from one distribution" (Mann & Whitney 1947).

    Up to 50 values a side all arrangements of the values at hand are counted, ties included; beyond, the normal
    approximation with corrections for ties and continuity. All values equal give 1.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m = len(a), len(b)
    if n == 0 or m == 0:
        return math.nan
    _, ties = np.unique(np.concatenate([a, b]), return_counts=True)
    u = u_statistic(a, b)
    if max(n, m) <= EXACT_UP_TO:
        return _exact_p(n, ties, round(2 * u) + n * (n + 1))
    total = n + m
    variance = n * m / 12 * (total + 1 - float(np.sum(ties**3 - ties)) / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    return math.erfc(max(abs(u - n * m / 2) - 0.5, 0) / math.sqrt(2 * variance))


def _exact_p(n: int, ties: NDArray[np.int64], doubled_rank_sum: int) -> float:
    """Count the arrangements at least as extreme: twice the smaller tail, at most 1.

    counts[k, s] is the number of ways to give k of the values seen so far to the first set with doubled rank sum s;
    every group of equal values adds j of its t members in C(t, j) ways, each with the group's middle rank.
    """
    total = int(ties.sum())
    counts: dict[tuple[int, int], int] = {(0, 0): 1}
    seen = 0
    for t in ties.tolist():
        doubled_rank = 2 * seen + t + 1
        seen += t
        following: dict[tuple[int, int], int] = {}
        for (k, s), ways in counts.items():
            for j in range(max(0, n - k - (total - seen)), min(t, n - k) + 1):
                key = (k + j, s + j * doubled_rank)
                following[key] = following.get(key, 0) + ways * math.comb(t, j)
        counts = following
    # Doubled rank sums are whole numbers, so the comparison needs no tolerance.
    low = sum(ways for (_, s), ways in counts.items() if s <= doubled_rank_sum)
    high = sum(ways for (_, s), ways in counts.items() if s >= doubled_rank_sum)
    return min(1.0, 2 * min(low, high) / math.comb(total, n))
