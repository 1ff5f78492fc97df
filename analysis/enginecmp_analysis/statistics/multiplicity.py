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


def holm_confidence(p_values: ArrayLike, confidence: float) -> Floats:
    """Return the level of each test's interval that leaves out the null value exactly where Holm's method rejects.

    A test is rejected at 1 - confidence = alpha when p < alpha / k, with k how often its adjusted p (before it is cut
    at 1) holds its p; its interval at level 1 - alpha / k says the same. NaN takes Bonferroni's level.
    """
    p = np.asarray(p_values, dtype=np.float64)
    present = np.flatnonzero(np.isfinite(p))
    factor = np.full(p.shape, float(max(1, len(present))))
    order = present[np.argsort(p[present], kind="stable")]
    if len(order):
        steps = np.arange(len(order), 0, -1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            factor[order] = np.where(p[order] > 0, _holm_sorted(p[order]) / p[order], steps)
    return 1 - (1 - confidence) / factor


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
