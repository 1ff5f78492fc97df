"""Student's t: tails and quantiles, elementwise on arrays, and the interval of a mean."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.beta import incomplete_beta

Floats = NDArray[np.float64]


def t_upper_tail(t: ArrayLike, df: ArrayLike) -> Floats:
    """Return P(T > t)."""
    if np.ndim(t) == 0 and np.ndim(df) == 0:
        # One value at a time is the common case, and np.vectorize costs more than the tail itself.
        return np.asarray(_upper_tail(float(np.asarray(t)), float(np.asarray(df))))
    return np.asarray(_tails(t, df), dtype=np.float64)


def _upper_tail(t: float, df: float) -> float:
    # P(|T| > t) = I_{n / (n + t^2)}(n / 2, 1 / 2); digits are kept far out in the tail.
    outside = incomplete_beta(df / 2, 0.5, df / (df + t * t))
    return outside / 2 if t > 0 else 1 - outside / 2


_tails = np.vectorize(_upper_tail, otypes=[np.float64])


def t_two_sided(t: ArrayLike, df: ArrayLike) -> Floats:
    """Return P(|T| > |t|)."""
    return 2.0 * t_upper_tail(np.abs(np.asarray(t, dtype=np.float64)), df)


def t_quantile(probability: ArrayLike, df: ArrayLike) -> Floats:
    """Return the point that a t variable with `df` degrees of freedom stays below with this probability."""
    if np.ndim(probability) == 0 and np.ndim(df) == 0:
        return np.asarray(_quantile(float(np.asarray(probability)), float(np.asarray(df))))
    return np.asarray(_quantiles(probability, df), dtype=np.float64)


@functools.lru_cache(maxsize=65536)
def _quantile(p: float, df: float) -> float:
    """Solve for one quantile by Newton's method on the logarithm of the tail.

    In u = log t the logarithm of the tail is concave and falling, so Newton's steps converge from anywhere.
    """
    if math.isnan(p) or math.isnan(df) or df <= 0:
        return math.nan
    if p == 0.5:
        return 0.0
    tail = min(p, 1 - p)
    log_density = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    t = 1.0
    for _ in range(100):
        q = _upper_tail(t, df)
        density = math.exp(log_density - (df + 1) / 2 * math.log1p(t * t / df))
        # From far out a step may leave the range of floats: never more than a factor of ten at once.
        step = max(-2.3, min(2.3, math.log(q / tail) * q / (density * t)))
        t *= math.exp(step)
        if abs(step) < 1e-13:
            break
    return t if p > 0.5 else -t


_quantiles = np.vectorize(_quantile, otypes=[np.float64])


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean, lower and upper limit of the t interval.

    With one value the limits are NaN: one launch says nothing about the next.

    Args:
        values: shape (n,), n >= 1.
        confidence: coverage of the two-sided interval.
    """
    data = np.asarray(values, dtype=np.float64)
    n, mean = len(data), float(data.mean())
    if n < 2:
        return mean, math.nan, math.nan
    half = float(t_quantile(0.5 + confidence / 2, n - 1) * data.std(ddof=1)) / math.sqrt(n)
    return mean, mean - half, mean + half


def positive_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return mean, lower and upper limit of a quantity that is never below zero, such as a time.

    The t interval of the mean's logarithm, whose standard error is that of the mean over the mean (delta method): the
    limits are above zero, and close to those of `mean_interval` where the spread is small. Values below zero, which
    such a quantity has only by rounding, and a mean of zero leave no logarithm; then it is the plain interval.

    Args:
        values: shape (n,), n >= 1.
        confidence: coverage of the two-sided interval.
    """
    mean, low, high = mean_interval(values, confidence)
    if not mean > 0 or not math.isfinite(high) or float(np.min(np.asarray(values))) < 0:
        return mean, low, high
    factor = math.exp((high - mean) / mean)
    return mean, mean / factor, mean * factor
