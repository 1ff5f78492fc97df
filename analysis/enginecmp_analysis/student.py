"""Student's t from `scipy.special`: `scipy.stats` takes most of a second to import, and `cmp stats` has one.

All functions work elementwise on arrays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]


def t_quantile(probability: ArrayLike, df: ArrayLike) -> Floats:
    """Return the point that a t variable with `df` degrees of freedom stays below with this probability."""
    p, n = np.asarray(probability, dtype=np.float64), np.asarray(df, dtype=np.float64)
    return np.asarray(special.stdtrit(n, p), dtype=np.float64)


def t_upper_tail(t: ArrayLike, df: ArrayLike) -> Floats:
    """Return P(T > t)."""
    x, n = np.asarray(t, dtype=np.float64), np.asarray(df, dtype=np.float64)
    return np.asarray(special.stdtr(n, -x), dtype=np.float64)


def t_two_sided(t: ArrayLike, df: ArrayLike) -> Floats:
    """Return P(|T| > |t|)."""
    return 2.0 * t_upper_tail(np.abs(np.asarray(t, dtype=np.float64)), df)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[Floats, Floats, Floats]:
    """Return mean, lower and upper limit of the t interval along the last axis.

    With one value the limits are NaN: one launch says nothing about the next.

    Args:
        values: shape (..., n), n >= 1.
        confidence: coverage of the two-sided interval.
    """
    data = np.asarray(values, dtype=np.float64)
    n = data.shape[-1]
    mean = data.mean(axis=-1)
    if n < 2:
        nothing = np.full_like(mean, np.nan)
        return mean, nothing, nothing
    half = t_quantile(0.5 + confidence / 2, n - 1) * data.std(axis=-1, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half
