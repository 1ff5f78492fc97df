"""Warm-up and steady state: one cut for all groups of series, and what kind of series each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_analysis.statistics.changepoint import change_points
from enginecmp_analysis.statistics.student import t_two_sided

Floats = NDArray[np.float64]

LaunchClass = Literal["flat", "warm-up", "slow-down", "no steady state"]

BATCH = 10
"""Requests averaged before looking for change points: correlated requests would show change everywhere."""

MSER_BATCH = 5
MIN_MSER_BATCHES = 6
MIN_BATCHES = 8

MOST_BATCHES = 100
"""Longer launches are averaged further: the search for change points grows with the square of their number."""

SAME = 0.01
"""Segments whose means differ by less than this are the same speed."""


@dataclass(frozen=True, slots=True)
class Steadiness:
    """What is steady in several groups of series.

    Attributes:
        cut: values to leave out at the start of every series of every group.
        classes: class of each series, by group; empty where series are too short to tell.
    """

    cut: int
    classes: dict[str, list[LaunchClass]]


def mser5(values: ArrayLike) -> int:
    """Return how many values to cut at the start: MSER-5, White 1997.

    The cut that makes the standard error of the mean of what remains smallest, on means of five, in the first half.
    """
    means = _batches(np.asarray(values, dtype=np.float64), MSER_BATCH)
    k = len(means)
    if k < 2:
        return 0
    # Sums over the tails means[d:], for every d at once.
    left = np.arange(k, 0, -1)
    centred = means - means.mean()
    squares = np.cumsum(centred[::-1] ** 2)[::-1] - np.cumsum(centred[::-1])[::-1] ** 2 / left
    statistic = (np.maximum(squares, 0) / left**2)[: k // 2 + 1]
    return int(np.argmin(statistic)) * MSER_BATCH


def classify(values: ArrayLike) -> tuple[LaunchClass | None, int]:
    """Return the class of one launch and where its steady state begins.

    Barrett et al. 2017: change points split the launch into segments; those at the end that have the same mean are
    the steady state, which must hold for the last half. It is a warm-up when the steady state is the fastest
    segment, a slow-down when another was faster.

    Args:
        values: (n,) times of the requests of one launch, in order.

    Returns:
        The class, None when the launch is too short to tell, and the first request of the steady state.
    """
    data = np.asarray(values, dtype=np.float64)
    size = max(BATCH, len(data) // MOST_BATCHES)
    means = _batches(data, size)
    if len(means) < MIN_BATCHES:
        return None, 0
    edges = [0, *change_points(means), len(means)]
    levels = [float(means[a:b].mean()) for a, b in pairwise(edges)]
    steady = len(levels) - 1
    while steady > 0 and abs(levels[steady - 1] / levels[-1] - 1) < SAME:
        steady -= 1
    begin = edges[steady]
    if begin == 0:
        return "flat", 0
    if begin > len(means) / 2:
        return "no steady state", 0
    return ("warm-up" if min(levels) >= levels[-1] * (1 - SAME) else "slow-down"), begin * size


def steadiness(launches: Mapping[str, Sequence[Floats]], floor: int = 0, least: int = 10) -> Steadiness:
    """Return one cut for all groups of series, and the classes of the series.

    The cut is the largest of the fixed floor, MSER-5 and the change points, over all groups and series, but
    leaves at least half of the shortest launch and `least` requests. MSER-5 runs on the mean over launches (Welch
    1983) and counts only if the launches agree (t over launches, p < .01) that what it cuts is different: alone it
    cuts something from most series, warm or not.

    Args:
        launches: for each group the values of each of its series, in order.
        floor: requests to cut in any case.
        least: requests that must remain.
    """
    cut = 0
    classes: dict[str, list[LaunchClass]] = {}
    for group, series in launches.items():
        cut = max(cut, _common_warmup(series))
        found = [classify(values) for values in series]
        classes[group] = [kind for kind, _ in found if kind is not None]
        cut = max([cut, *(begin for _, begin in found)])
    shortest = min((len(values) for series in launches.values() for values in series), default=0)
    cut = max(0, min(cut, shortest // 2, shortest - least))
    return Steadiness(max(cut, floor), classes)


def _common_warmup(series: Sequence[Floats]) -> int:
    shortest = min((len(values) for values in series), default=0)
    if shortest < MIN_MSER_BATCHES * MSER_BATCH:
        return 0
    logs = np.log(np.stack([np.maximum(values[:shortest], 1e-12) for values in series]))
    cut = mser5(logs.mean(axis=0))
    if cut == 0 or len(series) < 2:
        return cut
    steps = logs[:, :cut].mean(axis=1) - logs[:, cut:].mean(axis=1)
    se = steps.std(ddof=1) / np.sqrt(len(steps))
    return cut if se > 0 and float(t_two_sided(steps.mean() / se, len(steps) - 1)) < 0.01 else 0


def _batches(values: Floats, size: int) -> Floats:
    """Return means of `size` consecutive values; a rest at the end is dropped."""
    whole = len(values) // size
    return np.asarray(values[: whole * size].reshape(whole, size).mean(axis=1))
