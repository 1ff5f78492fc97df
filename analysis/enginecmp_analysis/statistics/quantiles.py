"""Quantiles, and how many values it takes before one means anything."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.beta import incomplete_beta

Floats = NDArray[np.float64]

SHOWN = (0.5, 0.9, 0.95, 0.99)
"""The quantiles of every summary."""


def needed_for_quantile(q: float, confidence: float = 0.95) -> int:
    """Return the sample size at which order statistics bound a quantile on both sides.

    The largest value is above the quantile with probability 1 - q^n, the smallest below it with 1 - (1 - q)^n; each
    may fail with half of 1 - confidence. Gives 36, 72, 368, 3688 for p90, p95, p99, p99.9.
    """
    extreme = max(q, 1 - q)
    return math.ceil(math.log((1 - confidence) / 2) / math.log(extreme))


def quantiles_or_nan(values: ArrayLike, wanted: tuple[float, ...] = SHOWN) -> list[float]:
    """Return sample quantiles (linear between order statistics), NaN where n cannot bound one.

    Args:
        values: (n,) single values.
        wanted: probabilities.
    """
    data = np.asarray(values, dtype=np.float64)
    allowed = [q for q in wanted if len(data) >= needed_for_quantile(q)]
    found = dict(zip(allowed, np.quantile(data, allowed).tolist(), strict=True)) if allowed else {}
    return [found.get(q, math.nan) for q in wanted]


def harrell_davis(values: ArrayLike, q: float) -> float:
    """Return the Harrell-Davis estimate of a quantile: a weighted mean of all order statistics.

    Harrell & Davis 1982: weight i is I_(i/n)(a, b) - I_((i-1)/n)(a, b) with a = (n + 1) q, b = (n + 1) (1 - q).
    Smoother than one order statistic, which matters for launches of a few dozen requests.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    return float(data @ _weights(len(data), q)) if len(data) else math.nan


@functools.lru_cache(maxsize=256)
def _weights(n: int, q: float) -> Floats:
    a, b = (n + 1) * q, (n + 1) * (1 - q)
    return np.diff([incomplete_beta(a, b, i / n) for i in range(n + 1)])


def needed_per_launch(q: float) -> int:
    """Return the requests a launch needs before its own quantile may enter a comparison: three in the tail.

    6 for the median, 30 for p90, 60 for p95, 300 for p99.
    """
    return max(6, math.ceil(round(3 / min(q, 1 - q), 9)))
