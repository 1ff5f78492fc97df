"""How heavy a tail is, and how far a spread of launches can be trusted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

INFINITE_VARIANCE = 2.0
"""Tail index at and below which the variance is infinite: means settle slowly or never."""


def tail_index(values: ArrayLike, share: float = 0.05) -> float:
    """Return Hill's estimate of the tail index from the largest values; NaN when there are too few to tell.

    Hill 1975. Light tails give large numbers; 2 and below means infinite variance, 1 and below an infinite mean.

    Args:
        values: (n,) positive values, n >= 200 for an answer.
        share: part of the values taken as the tail.
    """
    data = np.asarray(values, dtype=np.float64)
    k = int(len(data) * share)
    if k < 10:
        return math.nan
    top = np.partition(data, len(data) - k - 1)[len(data) - k - 1 :]
    threshold = float(top.min())
    if threshold <= 0:
        return math.nan
    excess = float(np.log(top / threshold).sum())
    return k / excess if excess > 0 else math.inf


def cv_upper_bound(cv: float, n: int, confidence: float = 0.95) -> float:
    """Return the upper confidence bound of a coefficient of variation: CV * sqrt((n - 1) / chi2[1 - confidence]).

    Five launches must show 2.1 % to claim 5 %, ten 3.0 %.
    """
    from scipy import special

    if n < 2:
        return math.nan
    return cv * math.sqrt((n - 1) / float(special.chdtri(n - 1, confidence)))
