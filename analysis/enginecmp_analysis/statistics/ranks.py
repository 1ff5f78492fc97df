"""Ranks of single values: an effect size that is easy to picture.

Values are treated as independent. Requests of one launch are not, so the effect size is descriptive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


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
    a, b = np.sort(np.asarray(first, dtype=np.float64)), np.asarray(second, dtype=np.float64)
    pairs = len(a) * len(b)
    if pairs == 0:
        return RankEffect(math.nan, math.nan)
    smaller = int(np.searchsorted(a, b, side="left").sum())
    larger = pairs - int(np.searchsorted(a, b, side="right").sum())
    return RankEffect((smaller + (pairs - smaller - larger) / 2) / pairs, (smaller - larger) / pairs)
