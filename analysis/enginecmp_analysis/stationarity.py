"""Whether requests drift, and how many independent ones they amount to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.student import t_two_sided

Floats = NDArray[np.float64]

MOST_FOR_PAIRS = 1000
"""Longer series are averaged down before every pair is compared."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A monotonic trend in a series.

    Attributes:
        tau: Kendall's tau-b with the index, -1..1.
        p_value: two-sided, normal approximation.
        change: Theil-Sen growth from the first value to the last, relative to the median.
    """

    tau: float
    p_value: float
    change: float


def trend(values: ArrayLike) -> Trend:
    """Return the trend of a series against its index; NaN with fewer than four values or without any spread."""
    x = np.asarray(values, dtype=np.float64)
    if len(x) > MOST_FOR_PAIRS:
        size = -(-len(x) // MOST_FOR_PAIRS)
        x = x[: len(x) // size * size].reshape(-1, size).mean(axis=1)
    n = len(x)
    if n < 4 or np.ptp(x) == 0:
        return Trend(math.nan, math.nan, math.nan)
    i, j = np.triu_indices(n, 1)
    steps = x[j] - x[i]
    score = float(np.sign(steps).sum())
    pairs = n * (n - 1) / 2
    _, ties = np.unique(x, return_counts=True)
    # Kendall 1970: variance of the score with ties in one variable.
    variance = (n * (n - 1) * (2 * n + 5) - float(np.sum(ties * (ties - 1) * (2 * ties + 5)))) / 18
    z = max(abs(score) - 1, 0) / math.sqrt(variance)
    tied = float(np.sum(ties * (ties - 1))) / 2
    slope = float(np.median(steps / (j - i)))
    middle = float(np.median(x))
    return Trend(
        tau=score / math.sqrt(pairs * (pairs - tied)),
        p_value=math.erfc(z / math.sqrt(2)),
        change=slope * (n - 1) / middle if middle else math.nan,
    )


def autocorrelation(values: ArrayLike, lags: int) -> Floats:
    """Return the autocorrelation at lags 1..`lags`, shape (lags,); NaN without any spread."""
    x = np.asarray(values, dtype=np.float64)
    x = x - x.mean()
    power = float(x @ x)
    if power == 0:
        return np.full(lags, np.nan)
    return np.array([float(x[: len(x) - lag] @ x[lag:]) / power for lag in range(1, lags + 1)])


def effective_sample_size(values: ArrayLike) -> float:
    """Return n / (1 + 2 sum rho), summed while neighbouring pairs stay positive (Geyer 1992); at most n."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n < 4:
        return float(n)
    rho = np.r_[1.0, autocorrelation(x, min(n // 2, 200))]
    if np.isnan(rho).any():
        return float(n)
    total = 0.0
    for k in range(0, len(rho) - 1, 2):
        pair = float(rho[k] + rho[k + 1])
        if pair <= 0:
            break
        total += pair
    return min(float(n), n / max(2 * total - 1, 1e-9))


@dataclass(frozen=True, slots=True)
class Correlation:
    """How much the requests of some launches resemble their neighbours.

    Attributes:
        lag_one: median over launches of the lag-1 autocorrelation.
        effective: effective number of requests, summed over launches.
        n: requests.
    """

    lag_one: float
    effective: float
    n: int


def correlation(launches: Sequence[Floats]) -> Correlation:
    """Return the correlation inside launches; NaN when all are shorter than ten requests."""
    long = [values for values in launches if len(values) >= 10]
    if not long:
        return Correlation(math.nan, math.nan, 0)
    lag_one = [float(autocorrelation(values, 1)[0]) for values in long]
    known = [rho for rho in lag_one if not math.isnan(rho)]
    # The estimate is low by about 1 / n, which is all there is to see in short launches.
    bias = float(np.mean([1 / len(values) for values in long]))
    return Correlation(
        lag_one=float(np.median(known)) + bias if known else math.nan,
        effective=sum(effective_sample_size(values) for values in long),
        n=sum(len(values) for values in long),
    )


def drift_inside(launches: Sequence[Floats]) -> tuple[float, float]:
    """Return the mean relative growth from first to last request of a launch, and the p of "none".

    Each launch gives one Theil-Sen slope; a t over launches judges them, so correlation inside does not matter.
    """
    changes = [trend(values).change for values in launches if len(values) >= 10]
    slopes = np.array([change for change in changes if not math.isnan(change)])
    if len(slopes) < 3 or np.ptp(slopes) == 0:
        return math.nan, math.nan
    t = slopes.mean() / (slopes.std(ddof=1) / np.sqrt(len(slopes)))
    return float(slopes.mean()), float(t_two_sided(t, len(slopes) - 1))
