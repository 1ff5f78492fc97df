"""Sign-flip permutation: the paired test that assumes nothing but symmetry under "no difference"."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

EXACT_UP_TO = 20
"""Up to this many blocks all 2^B sign patterns are tried."""

RANDOM_PATTERNS = 99_999


def sign_flip_p(differences: ArrayLike, seed: int = 0) -> float:
    """Return the two-sided p of "the differences are symmetric around 0".

    Exact up to 2^20 patterns; beyond, random patterns, the observed one counted among them, so it is never zero.
    The smallest p that B blocks can give is 2 / 2^B: below 6 blocks nothing is significant.

    Args:
        differences: (B,) log ratios of the blocks.
        seed: of the random patterns.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) == 0 or not np.isfinite(d).all():
        return math.nan
    observed = abs(float(d.sum()))
    # Sums that are equal on paper must not differ by rounding.
    limit = observed - 1e-12 * float(np.abs(d).sum())
    if len(d) <= EXACT_UP_TO:
        # The first sign is fixed: a pattern and its mirror image are equally far from zero.
        sums = np.abs(d[:1])
        for value in np.abs(d[1:]):
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= limit))
    rng = np.random.default_rng(seed)
    hits = 1
    for _ in range(9):
        signs = rng.integers(0, 2, size=(RANDOM_PATTERNS // 9, len(d)), dtype=np.int8) * 2 - 1
        hits += int(np.sum(np.abs(signs @ d) >= limit))
    return hits / (RANDOM_PATTERNS // 9 * 9 + 1)
