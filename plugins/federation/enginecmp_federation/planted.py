"""Deltas whose truth is known: the same truth at every node, with noise of its own; and attackers among the nodes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginecmp_federation.settings import Parameters

Floats = NDArray[np.float32]


def shapes_of(settings: Parameters) -> list[tuple[int, int]]:
    """Return the shapes of a planted adapter's matrices: A (rank, inputs) and B (outputs, rank), query then value."""
    of_layer = [
        (settings.rank, settings.hidden),
        (settings.hidden, settings.rank),
        (settings.rank, settings.hidden),
        (settings.value_width, settings.rank),
    ]
    return of_layer * settings.layers


def split(flat: Floats, shapes: list[tuple[int, int]]) -> list[Floats]:
    """Return the matrices of a vector, views of it."""
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]


def truth(settings: Parameters, seed: int) -> Floats:
    """Return the delta that honest nodes agree on, (values,)."""
    return np.random.default_rng([seed, 0]).standard_normal(settings.values, np.float32)


def honest(settings: Parameters, seed: int, draw: int, node: int) -> Floats:
    """Return an honest node's delta, (values,): the truth plus noise of `spread` times its length."""
    noise = np.random.default_rng([seed, 1, draw, node]).standard_normal(settings.values, np.float32)
    return truth(settings, seed) + np.float32(settings.spread) * noise


def is_attacker(settings: Parameters, seed: int, draw: int, node: int) -> bool:
    """Return whether a node attacks: `attackers` of them, drawn from the seed."""
    order = np.random.default_rng([seed, 2, draw]).permutation(settings.nodes)
    return node in order[: settings.attackers]


def attacked(delta: Floats, settings: Parameters, random: np.random.Generator) -> Floats:
    """Return what an attacker sends in place of its delta, of any shape (`Parameters.attack`)."""
    strength = np.float32(settings.strength)
    if settings.attack == "sign_flip":
        return -strength * delta
    if settings.attack == "scaling":
        return strength * delta
    noise = random.standard_normal(delta.shape, np.float32)
    return noise * np.float32(strength * np.linalg.norm(delta) / np.linalg.norm(noise))
