"""Where the variance comes from: requests or launches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.beta import incomplete_beta

Floats = NDArray[np.float64]


def group_means(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Return the mean of each group along the last axis, the groups in rising order.

    Args:
        values: (..., n).
        groups: (n,) number of the group of each value.
    """
    data, codes = np.asarray(values, dtype=np.float64), np.asarray(groups)
    # Of infinities of both signs there is no mean.
    with np.errstate(invalid="ignore"):
        return np.stack([data[..., codes == code].mean(axis=-1) for code in np.unique(codes)], axis=-1)


def replicates(values: ArrayLike, groups: ArrayLike) -> Floats:
    """Return what an interval rests on: the mean of each group where there are several, else the values.

    Args:
        values: (n,).
        groups: (n,) number of the group (run or node) of each value.
    """
    return group_means(values, groups) if len(np.unique(groups)) > 1 else np.asarray(values, dtype=np.float64)


def same_level_p(values: ArrayLike, groups: ArrayLike) -> float:
    """Return the p of "all groups have one mean": the F test of the one-way analysis of variance.

    P(F > f) = I_x(d2 / 2, d1 / 2) with x = d2 / (d2 + d1 f).

    Args:
        values: (n,).
        groups: (n,) number of the group of each value.

    Returns:
        NaN with one group, without two values in any of them, or without spread inside them.
    """
    data, codes = np.asarray(values, dtype=np.float64), np.asarray(groups)
    parts = [data[codes == code] for code in np.unique(codes)]
    d1, d2 = len(parts) - 1, len(data) - len(parts)
    inside = sum(float(((part - part.mean()) ** 2).sum()) for part in parts) if np.isfinite(data).all() else math.nan
    if d1 < 1 or d2 < 1 or not inside > 0:
        return math.nan
    between = sum(len(part) * (float(part.mean()) - float(data.mean())) ** 2 for part in parts)
    f = (between / d1) / (inside / d2)
    return incomplete_beta(d2 / 2, d1 / 2, d2 / (d2 + d1 * f))


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
