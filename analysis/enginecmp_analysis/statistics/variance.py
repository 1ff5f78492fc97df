"""Where the variance comes from: requests, launches, or more levels above them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def level_variances(values: ArrayLike) -> list[float]:
    """Return S_i^2 of every level, lowest first.

    Kalibera & Jones 2013, section 6.1: the variance of the means at level i around their mean at level i + 1.

    Args:
        values: balanced nested measurements, the highest level on the first axis, e.g. (launches, requests).
    """
    data = np.asarray(values, dtype=np.float64)
    found = []
    while data.ndim:
        found.append(float(np.mean(data.var(axis=-1, ddof=1))))
        data = data.mean(axis=-1)
    return found


def unbiased_components(values: ArrayLike) -> list[float]:
    """Return T_i^2 of every level, lowest first: what each level adds by itself.

    Kalibera & Jones 2013, eq. 3: T_1^2 = S_1^2, T_i^2 = S_i^2 - S_(i-1)^2 / r_(i-1). May be negative where a level
    adds nothing; clamp before use.
    """
    shape = np.asarray(values).shape
    s = level_variances(values)
    return [s[0], *(s[i] - s[i - 1] / shape[-i] for i in range(1, len(s)))]


def optimal_repetitions(components: Sequence[float], costs: Sequence[float]) -> list[float]:
    """Return the cheapest number of repetitions at every level but the highest, lowest first, not rounded.

    Kalibera & Jones 2013, eq. 4: r_i = sqrt(c_(i+1) / c_i * T_i^2 / T_(i+1)^2).

    Args:
        components: T_i^2, lowest level first.
        costs: c_i, time to get one more value at level i (c_1: one request; c_2: one launch without its requests).

    Returns:
        inf where the level above adds no variance: then more of this level is all that helps.
    """
    found = []
    for i in range(len(components) - 1):
        inner, outer = max(components[i], 0.0), max(components[i + 1], 0.0)
        found.append(math.sqrt(costs[i + 1] / costs[i] * inner / outer) if outer > 0 else math.inf)
    return found


def launch_components(launches: Sequence[Floats]) -> tuple[float, float]:
    """Return the variance between launches and within launches, for launches of unequal length.

    The method of moments of the one-way random model: variance of launch means minus the mean of s_w^2 / n_i,
    clamped at 0. NaN with fewer than two launches of at least two values.
    """
    usable = [values for values in launches if len(values) > 1]
    if len(usable) < 2:
        return math.nan, math.nan
    sizes = np.array([len(values) for values in usable])
    within = float(sum(float(v.var(ddof=1)) * (len(v) - 1) for v in usable) / (sizes - 1).sum())
    means = np.array([float(values.mean()) for values in usable])
    return max(0.0, float(means.var(ddof=1)) - within * float(np.mean(1 / sizes))), within
