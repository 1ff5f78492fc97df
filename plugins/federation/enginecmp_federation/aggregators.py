"""Aggregation of node deltas in plain NumPy, over stacked vectors (nodes, values) in float32.

Sources: FedAvg, McMahan et al. 2017; coordinate-wise median and trimmed mean, Yin et al. 2018, definitions 1 and 2;
Krum and multi-Krum, Blanchard et al. 2017, section 4; Bulyan, El Mhamdi, Guerraoui and Rouault 2018, section 4.
`attackers` is f of those papers: how many may lie. `settings.broken_rule` says which numbers each allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def fedavg(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return the mean weighted by examples, (values,)."""
    weights = np.asarray(examples, np.float64) / sum(examples)
    return np.asarray(weights.astype(np.float32) @ deltas, np.float32)


def median(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return the median of each coordinate, (values,)."""
    return _middle(deltas, (len(deltas) - 1) // 2)


def trimmed_mean(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return the mean of each coordinate without its f smallest and f largest values, (values,)."""
    return _middle(deltas, attackers)


def krum(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return the delta with the smallest sum of squared distances to its n - f - 2 nearest others, (values,)."""
    best: Floats = deltas[np.argmin(_scores(_squared_distances(deltas), attackers))]
    return best


def multi_krum(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return the mean, weighted by examples, of the n - f - 2 deltas with the smallest scores of Krum, (values,)."""
    scores = _scores(_squared_distances(deltas), attackers)
    chosen = np.argsort(scores, kind="stable")[: len(deltas) - attackers - 2]
    return fedavg(deltas[chosen], attackers, [examples[node] for node in chosen])


def bulyan(deltas: Floats, attackers: int, examples: Sequence[int]) -> Floats:
    """Return, for each coordinate, the mean of the n - 4f values nearest to the median of n - 2f selected deltas.

    They are selected one by one by Krum over those that are left.
    """
    distances = _squared_distances(deltas)
    left = np.arange(len(deltas))
    selected = []
    for _ in range(len(deltas) - 2 * attackers):
        best = int(np.argmin(_scores(distances[np.ix_(left, left)], attackers)))
        selected.append(left[best])
        left = np.delete(left, best)
    among = np.sort(deltas[selected], axis=0)  # (n - 2f, values)
    kept = len(deltas) - 4 * attackers
    # Sorted, the values nearest to the median lie side by side: of all windows that of the smallest farther end.
    centre = np.median(among, axis=0)
    windows = len(among) - kept + 1
    reach = np.stack([np.maximum(centre - among[at], among[at + kept - 1] - centre) for at in range(windows)])
    first = np.argmin(reach, axis=0)  # (values,)
    sums = np.concatenate([np.zeros_like(among[:1], np.float64), np.cumsum(among, axis=0, dtype=np.float64)])
    columns = np.arange(among.shape[1])
    return np.asarray((sums[first + kept, columns] - sums[first, columns]) / kept, np.float32)


RULES: dict[str, Callable[[Floats, int, Sequence[int]], Floats]] = {
    "fedavg": fedavg,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
}


def _middle(deltas: Floats, cut: int) -> Floats:
    """Return the mean of each coordinate without its `cut` smallest and largest values, (values,)."""
    end = len(deltas) - cut
    if not cut:
        return np.asarray(deltas.mean(axis=0), np.float32)
    # Whole partitions at both ends; a full sort orders what is averaged anyway.
    parted = np.partition(deltas, (cut, end - 1), axis=0)
    return np.asarray(parted[cut:end].mean(axis=0), np.float32)


def _squared_distances(deltas: Floats) -> NDArray[np.float64]:
    """Return the squared distance of every pair, (nodes, nodes), float64: differences first, so that none cancels."""
    distances = np.zeros((len(deltas), len(deltas)))
    for row in range(len(deltas)):
        for column in range(row):
            apart = deltas[row] - deltas[column]
            distances[row, column] = distances[column, row] = float(np.dot(apart, apart))
    return distances


def _scores(distances: NDArray[np.float64], attackers: int) -> NDArray[np.float64]:
    """Return Krum's score of every node: the sum of its distances to the n - f - 2 nearest others, at least one."""
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest = max(1, len(distances) - attackers - 2)
    return np.asarray(np.sort(others, axis=1)[:, :nearest].sum(axis=1))
