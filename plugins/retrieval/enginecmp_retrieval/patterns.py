"""Patterns and queries, the same in every process: made from the seed.

A pattern stands for an adapter of one denoising step. Its key is its direction on the unit sphere with the step behind
it, `timestep_weight` at its place of a one-hot vector: two keys of different steps are farther apart by twice the
weight squared, in squared distance. Directions differ by at most 4, so from a weight of sqrt(2) on no pattern of
another step is nearer than one of the query's, however the index searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

QUERIES = 256
"""Different queries of a cell; a launch goes through them again and again."""

SPREAD = 0.3
"""Distance of a clustered pattern from its centre, as a share of the centre's length."""

_MOST_VALUES = 1 << 28


class Parameters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One variant of the scenario.

    Attributes:
        patterns: keys in the index.
        dimension: of a pattern, the timestep's places not counted.
        data: "gaussian": independent directions; "clustered": around `clusters` centres.
        clusters: centres of clustered data.
        steps: denoising steps that patterns belong to, in equal shares.
        timestep_weight: see the module.
        batch: queries of one call.
        k: patterns that are asked for.
        ef: candidates that a graph keeps while it searches (its `ef` or `expansion_search`).
        ef_construction: the same while it is built.
        connectivity: links of a node (`M`).
    """

    patterns: int
    dimension: int
    data: Literal["gaussian", "clustered"]
    clusters: int = 100
    steps: int = 8
    timestep_weight: float = 1.5
    batch: int = 1
    k: int = 5
    ef: int = 50
    ef_construction: int = 200
    connectivity: int = 16

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can mean.

        Raises:
            ValueError: names the number, what was expected and what it got.
        """
        for name, number in msgspec.structs.asdict(self).items():
            if isinstance(number, int) and not 1 <= number <= 1 << 24:
                msg = f"expected {name} from 1 to {1 << 24}, got {number}"
                raise ValueError(msg)
        if self.patterns * (self.dimension + self.steps) > _MOST_VALUES:
            msg = f"expected at most {_MOST_VALUES} values in all keys, got {self.patterns} × {self.dimension}"
            raise ValueError(msg)
        if not 0 <= self.timestep_weight <= 100:
            msg = f"expected timestep_weight from 0 to 100, got {self.timestep_weight}"
            raise ValueError(msg)
        if self.batch > QUERIES or QUERIES % self.batch:
            msg = f"expected a batch that divides {QUERIES}, got {self.batch}"
            raise ValueError(msg)
        if self.k > self.patterns // self.steps:
            msg = f"expected k up to patterns / steps = {self.patterns // self.steps}, got {self.k}"
            raise ValueError(msg)


def parameters_of(table: Mapping[str, Any]) -> Parameters:
    """Return a variant of the scenario.

    Raises:
        ValueError: an unknown key, another type or a number that cannot be.
    """
    return msgspec.convert(dict(table), Parameters)


class Bank(NamedTuple):
    """Patterns with their timesteps, and queries with theirs.

    Attributes:
        patterns: (N, dimension) unit vectors.
        steps: (N,) timestep of each.
        queries: (Q, dimension) unit vectors.
        query_steps: (Q,) timestep of each.
    """

    patterns: Floats
    steps: Ints
    queries: Floats
    query_steps: Ints


def bank(parameters: Parameters, seed: int) -> Bank:
    """Return all patterns and queries of a variant.

    Args:
        parameters: of the variant.
        seed: the same one gives the same arrays, in every process.
    """
    random = np.random.default_rng(seed)
    n, d = parameters.patterns, parameters.dimension
    if parameters.data == "gaussian":
        patterns, queries = random.standard_normal((n, d), np.float32), random.standard_normal((QUERIES, d), np.float32)
    else:
        centres = random.standard_normal((parameters.clusters, d), np.float32)
        patterns, queries = (
            centres[random.integers(parameters.clusters, size=count)]
            + np.float32(SPREAD) * random.standard_normal((count, d), np.float32)
            for count in (n, QUERIES)
        )
    return Bank(
        _unit(patterns),
        random.permutation(np.arange(n) % parameters.steps),
        _unit(queries),
        random.integers(parameters.steps, size=QUERIES),
    )


def keys(vectors: Floats, steps: Ints, parameters: Parameters) -> Floats:
    """Return vectors with their timesteps behind them, (N, dimension + steps)."""
    whole = np.zeros((len(vectors), parameters.dimension + parameters.steps), np.float32)
    whole[:, : parameters.dimension] = vectors
    whole[np.arange(len(vectors)), parameters.dimension + steps] = parameters.timestep_weight
    return whole


def true_neighbours(found: Bank, k: int) -> Ints:
    """Return the k nearest patterns of each query's own timestep, (Q, k), by exact search in float64."""
    nearest = np.empty((len(found.queries), k), np.int64)
    for step in np.unique(found.query_steps):
        of_step, asked = np.flatnonzero(found.steps == step), np.flatnonzero(found.query_steps == step)
        # Of unit vectors the nearest are those with the largest product.
        near = found.queries[asked].astype(np.float64) @ found.patterns[of_step].astype(np.float64).T
        nearest[asked] = of_step[np.argpartition(near, -k, axis=1)[:, -k:]]
    return nearest


def _unit(vectors: Floats) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
