"""The ratio of two means by Fieller's theorem: no logarithm, so no bias where the spreads differ."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.student import t_quantile

Floats = NDArray[np.float64]


def fieller(
    first: ArrayLike, second: ArrayLike, confidence: float = 0.95, *, paired: bool = True
) -> tuple[Floats, Floats, Floats]:
    """Return mean(second) / mean(first) with its limits along the last axis.

    Fieller 1954; with the covariance of the pairs when paired. The limits are NaN when the first mean is not
    clear of zero, because then no finite interval exists.

    Args:
        first: (..., A) values.
        second: (..., B) values, entry i beside entry i of the first when paired.
        confidence: coverage.
        paired: use the covariance.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    n, m = a.shape[-1], b.shape[-1]
    x, y = a.mean(axis=-1), b.mean(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(y / x)
    if min(n, m) < 2:
        nothing = np.full_like(ratio, np.nan)
        return ratio, nothing, nothing
    vxx, vyy = a.var(axis=-1, ddof=1) / n, b.var(axis=-1, ddof=1) / m
    if paired:
        vxy = ((a - x[..., np.newaxis]) * (b - y[..., np.newaxis])).sum(axis=-1) / (n - 1) / n
        df: ArrayLike = n - 1
    else:
        vxy = np.zeros_like(vxx)
        scaled = vyy + ratio**2 * vxx
        with np.errstate(divide="ignore", invalid="ignore"):
            df = scaled**2 / (vyy**2 / (m - 1) + (ratio**2 * vxx) ** 2 / (n - 1))
    t2 = t_quantile(0.5 + confidence / 2, df) ** 2
    # Roots of (x^2 - t2 vxx) r^2 - 2 (x y - t2 vxy) r + (y^2 - t2 vyy) = 0.
    lead, middle, rest = x**2 - t2 * vxx, x * y - t2 * vxy, y**2 - t2 * vyy
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(np.where(lead > 0, middle**2 - lead * rest, np.nan))
        return ratio, np.asarray((middle - root) / lead), np.asarray((middle + root) / lead)
