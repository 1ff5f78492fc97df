"""Change points of a series: where its mean or its variance jumps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

SHORTEST = 2
"""Fewest values between two change points: a variance needs two."""


def change_points(values: ArrayLike, penalty: float | None = None) -> list[int]:
    """Return where new segments begin: pruned exact linear time search, normal mean and variance.

    Killick, Fearnhead & Eckley 2012. The cost of a segment is -2 log likelihood; 15 ln n is the penalty that
    Barrett et al. 2017 use. On correlated values it sees change everywhere: average ten requests first.

    Args:
        values: (n,).
        penalty: price of one more change point; 15 ln n if not given.

    Returns:
        Rising positions in 1..n-1; empty for a homogeneous or a very short series.
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 2 * SHORTEST:
        return []
    price = 15 * math.log(n) if penalty is None else penalty
    # Centred, so that the sums of squares below keep their digits.
    x = x - x.mean()
    sums, squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (x, x * x))
    # A constant stretch has no variance; a floor far below the noise keeps its likelihood finite.
    floor = max(float(x.var()) * 1e-6, 1e-300)
    best = np.full(n + 1, np.inf)
    best[0] = -price
    last = np.zeros(n + 1, dtype=np.int64)
    candidates = np.array([0])
    for end in range(SHORTEST, n + 1):
        length = end - candidates
        mean = (sums[end] - sums[candidates]) / length
        variance = (squares[end] - squares[candidates]) / length - mean * mean
        totals = best[candidates] + length * (math.log(2 * math.pi) + np.log(np.maximum(variance, floor)) + 1)
        chosen = int(np.argmin(totals))
        best[end], last[end] = totals[chosen] + price, candidates[chosen]
        # A start that is already worse than the best end can never win again (their eq. 4).
        candidates = np.append(candidates[totals <= best[end]], end - SHORTEST + 1)
    found = []
    position = n
    while last[position] > 0:
        position = int(last[position])
        found.append(position)
    return found[::-1]
