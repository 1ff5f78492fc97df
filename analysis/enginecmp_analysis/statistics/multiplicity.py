"""Looking at many comparisons: p-values that hold for all of them together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def holm(p_values: ArrayLike) -> Floats:
    """Return adjusted p-values that keep the chance of any false alarm in the family below alpha.

    Holm 1979: p sorted upwards, p_(i) times (m - i + 1), made monotone. NaN stays NaN and is not counted.
    """
    return _adjust(p_values, _holm_sorted)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Return adjusted p-values that keep the share of false alarms among the alarms below alpha.

    Benjamini & Hochberg 1995: p sorted upwards, p_(i) times m / i, made monotone from the top. NaN stays NaN and is
    not counted.
    """
    return _adjust(p_values, _bh_sorted)


def bonferroni_confidence(confidence: float, comparisons: int) -> float:
    """Return the level at which each of several intervals must be drawn to cover all truths together."""
    return 1 - (1 - confidence) / max(1, comparisons)


def _adjust(p_values: ArrayLike, rule: Callable[[Floats], Floats]) -> Floats:
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    present = np.flatnonzero(np.isfinite(p))
    order = present[np.argsort(p[present], kind="stable")]
    if len(order):
        adjusted[order] = np.minimum(rule(p[order]), 1.0)
    return adjusted


def _holm_sorted(p: Floats) -> Floats:
    return np.maximum.accumulate(p * np.arange(len(p), 0, -1))


def _bh_sorted(p: Floats) -> Floats:
    scaled = p * len(p) / np.arange(1, len(p) + 1)
    return np.minimum.accumulate(scaled[::-1])[::-1]
