"""Whether requests drift, and how many independent ones they amount to."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.student import t_two_sided

Floats = NDArray[np.float64]

MOST_FOR_PAIRS = 200
"""Longer series are averaged down before every pair is compared."""

MOST_LAGS = 200

NOTABLE_CORRELATION = 0.3
"""Neighbouring requests whose correlation is above this are not independent, whatever their number."""


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
    x = _shortened(x)
    n = len(x)
    if n < 4 or np.ptp(x) == 0:
        return Trend(math.nan, math.nan, math.nan)
    i, j = _pairs(n)
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


def _shortened(series: Floats) -> Floats:
    """Average neighbours along the last axis until there are few enough to compare every pair."""
    n = series.shape[-1]
    if n <= MOST_FOR_PAIRS:
        return series
    size = -(-n // MOST_FOR_PAIRS)
    whole = n // size
    return np.asarray(series[..., : whole * size].reshape(*series.shape[:-1], whole, size).mean(axis=-1))


def autocorrelation(values: ArrayLike, lags: int) -> Floats:
    """Return the autocorrelation at lags 1..`lags` along the last axis; NaN without any spread.

    Args:
        values: (..., n).
        lags: at most n - 1.
    """
    x = np.asarray(values, dtype=np.float64)
    x = x - x.mean(axis=-1, keepdims=True)
    power = np.einsum("...i,...i->...", x, x)
    n = x.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = [np.einsum("...i,...i->...", x[..., : n - k], x[..., k:]) / power for k in range(1, lags + 1)]
    return np.where(power[..., np.newaxis] > 0, np.stack(found, axis=-1), np.nan)


def effective_sample_size(values: ArrayLike) -> Floats:
    """Return n / (1 + 2 sum rho) along the last axis, at most n.

    Summed while neighbouring pairs of lags stay positive (Geyer 1992). A series without spread counts in full.
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.shape[-1]
    if n < 4:
        return np.full(x.shape[:-1], float(n))
    rho = autocorrelation(x, min(n // 2, MOST_LAGS))
    rho = np.concatenate([np.ones((*x.shape[:-1], 1)), rho], axis=-1)
    pairs = rho[..., : rho.shape[-1] // 2 * 2].reshape(*x.shape[:-1], -1, 2).sum(axis=-1)
    total = np.where(np.logical_and.accumulate(pairs > 0, axis=-1), pairs, 0.0).sum(axis=-1)
    effective = np.minimum(n, n / np.maximum(2 * total - 1, 1e-9))
    return np.where(np.isnan(rho).any(axis=-1), float(n), effective)


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
    groups = _by_length(launches)
    n = sum(group.size for group in groups)
    if n == 0:
        return Correlation(math.nan, math.nan, 0)
    # The estimate is low by about 1 / n, which is all there is to see in short launches.
    lag_one = np.concatenate([autocorrelation(group, 1)[:, 0] + 1 / group.shape[1] for group in groups])
    known = lag_one[np.isfinite(lag_one)]
    return Correlation(
        lag_one=float(np.median(known)) if len(known) else math.nan,
        effective=float(sum(effective_sample_size(group).sum() for group in groups)),
        n=n,
    )


def drift_inside(launches: Sequence[Floats]) -> tuple[float, float]:
    """Return the mean relative growth from first to last request of a launch, and the p of "none".

    Each launch gives one Theil-Sen slope; a t over launches judges them, so correlation inside does not matter.
    """
    found = growth(launches)
    slopes = found[np.isfinite(found)]
    if len(slopes) < 3 or np.ptp(slopes) == 0:
        return math.nan, math.nan
    t = slopes.mean() / (slopes.std(ddof=1) / np.sqrt(len(slopes)))
    return float(slopes.mean()), float(t_two_sided(t, len(slopes) - 1))


def growth(launches: Sequence[Floats]) -> Floats:
    """Return the Theil-Sen growth from first value to last, relative to the median, of launches of ten or more."""
    groups = _by_length(launches)
    return np.concatenate([_growth(group) for group in groups]) if groups else np.empty(0)


def _growth(group: Floats) -> Floats:
    """Return the Theil-Sen growth of each row from first value to last, relative to its median."""
    x = _shortened(group)
    n = x.shape[1]
    i, j = _pairs(n)
    # As many rows at once as fit a few megabytes.
    step = max(1, 500_000 // len(i))
    slopes = [np.median((x[k : k + step, j] - x[k : k + step, i]) / (j - i), axis=1) for k in range(0, len(x), step)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.concatenate(slopes) * (n - 1) / np.median(x, axis=1))


@functools.lru_cache(maxsize=8)
def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    i, j = np.triu_indices(n, 1)
    return i, j


def _by_length(launches: Sequence[Floats]) -> list[Floats]:
    """Stack launches of equal length, ten requests at least: most runs are one block of numbers."""
    groups: dict[int, list[Floats]] = {}
    for values in launches:
        if len(values) >= 10:
            groups.setdefault(len(values), []).append(values)
    return [np.stack(group) for group in groups.values()]
