"""Quantiles, and how many values it takes before one means anything."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
