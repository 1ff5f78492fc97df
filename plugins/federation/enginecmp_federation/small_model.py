"""A small model that adapters are trained on: two layers, frozen, with low-rank adapters (Hu et al. 2022, LoRA).

A teacher of the same form, whose weights are off by a low-rank change, labels Gaussian inputs; the adapters have to
find that change. The gradient is written out, so that nodes are quick and need nothing but NumPy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginecmp_federation.settings import Parameters

Floats = NDArray[np.float32]

INPUTS, HIDDEN, CLASSES = 32, 64, 8
EXAMPLES_PER_NODE = 256
HELD_OUT = 2048
BATCH = 32
LEARNING_RATE = 0.5
LONGEST_GRADIENT = 1.0
_CHANGE = 3.0
_PATIENCE = 64


class Model(NamedTuple):
    """The frozen weights and the teacher's.

    Attributes:
        first: (HIDDEN, INPUTS).
        second: (CLASSES, HIDDEN).
        teacher_first: like `first`, changed by a matrix of rank 2.
        teacher_second: like `second`.
    """

    first: Floats
    second: Floats
    teacher_first: Floats
    teacher_second: Floats


class Data(NamedTuple):
    """Inputs (N, INPUTS) and their classes (N,)."""

    inputs: Floats
    classes: NDArray[np.int64]


def model_of(seed: int) -> Model:
    """Return the model of a seed."""
    random = np.random.default_rng([seed, 10])

    def weights(rows: int, columns: int) -> Floats:
        return random.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(columns))

    def change(rows: int, columns: int) -> Floats:
        low_rank = weights(rows, 2) @ weights(2, columns) / np.sqrt(columns / 2)
        return np.asarray(_CHANGE * low_rank, np.float32)

    first, second = weights(HIDDEN, INPUTS), np.float32(3) * weights(CLASSES, HIDDEN)
    return Model(first, second, first + change(HIDDEN, INPUTS), second + change(CLASSES, HIDDEN))


def shapes_of(settings: Parameters) -> list[tuple[int, int]]:
    """Return the shapes of the adapter's matrices: A and B of the first layer, A and B of the second."""
    r = settings.rank
    return [(r, INPUTS), (HIDDEN, r), (r, HIDDEN), (CLASSES, r)]


def start(settings: Parameters, seed: int) -> list[Floats]:
    """Return the adapter that training starts from: A random, B zero, so that it changes nothing."""
    random = np.random.default_rng([seed, 11])
    shapes = shapes_of(settings)
    return [
        random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[1]))
        if number % 2 == 0
        else np.zeros(shape, np.float32)
        for number, shape in enumerate(shapes)
    ]


def held_out(model: Model, seed: int) -> Data:
    """Return data that no node has."""
    return _labelled(model, np.random.default_rng([seed, 12]).standard_normal((HELD_OUT, INPUTS), np.float32))


def data_of(model: Model, settings: Parameters, seed: int, draw: int, node: int) -> Data:
    """Return a node's examples, its classes in shares of a Dirichlet distribution of concentration `skew`."""
    random = np.random.default_rng([seed, 13, draw, node])
    shares = random.dirichlet(np.full(CLASSES, settings.skew))
    wanted = random.multinomial(EXAMPLES_PER_NODE, shares)
    kept: list[Floats] = []
    # Drawn until every class has its number; a class too rare to be found is filled up by the others.
    for _ in range(_PATIENCE):
        drawn = _labelled(model, random.standard_normal((EXAMPLES_PER_NODE, INPUTS), np.float32))
        for label in range(CLASSES):
            some = drawn.inputs[drawn.classes == label][: wanted[label]]
            wanted[label] -= len(some)
            kept.append(some)
        if not wanted.any():
            break
    else:
        kept.append(random.standard_normal((int(wanted.sum()), INPUTS), np.float32))
    return _labelled(model, np.concatenate(kept))


def loss(model: Model, adapter: list[Floats], data: Data) -> float:
    """Return the mean cross entropy of the adapted model, nats."""
    _, logits = _forward(model, adapter, data.inputs)
    return float(-np.mean(_log_softmax(logits.astype(np.float64))[np.arange(len(data.classes)), data.classes]))


def trained(
    model: Model, adapter: list[Floats], data: Data, steps: int, batch: int, random: np.random.Generator
) -> list[Floats]:
    """Return the adapter after steps of stochastic gradient descent, each on `batch` examples.

    The gradient is cut to a length of `LONGEST_GRADIENT` (Pascanu et al. 2013), so that an adapter that attackers have
    thrown far away stays finite.
    """
    found = [matrix.copy() for matrix in adapter]
    for _ in range(steps):
        chosen = random.integers(len(data.classes), size=batch)
        slopes = gradient(model, found, _picked(data, chosen))
        length = float(np.sqrt(sum(float(np.sum(slope.astype(np.float64) ** 2)) for slope in slopes)))
        rate = np.float32(LEARNING_RATE * min(1.0, LONGEST_GRADIENT / max(length, 1e-12)))
        for matrix, slope in zip(found, slopes, strict=True):
            matrix -= rate * slope
    return found


def gradient(model: Model, adapter: list[Floats], data: Data) -> list[Floats]:
    """Return the gradient of the mean loss by each matrix of the adapter."""
    first_a, first_b, second_a, second_b = adapter
    inputs = data.inputs
    hidden, logits = _forward(model, adapter, inputs)  # (N, HIDDEN), (N, CLASSES)
    by_logits = np.exp(_log_softmax(logits))
    by_logits[np.arange(len(inputs)), data.classes] -= 1
    by_logits /= np.float32(len(inputs))
    by_second = by_logits.T @ hidden  # (CLASSES, HIDDEN)
    by_hidden = by_logits @ (model.second + second_b @ second_a) * (1 - hidden**2)
    by_first = by_hidden.T @ inputs  # (HIDDEN, INPUTS)
    return [first_b.T @ by_first, by_first @ first_a.T, second_b.T @ by_second, by_second @ second_a.T]


def _forward(model: Model, adapter: list[Floats], inputs: Floats) -> tuple[Floats, Floats]:
    first_a, first_b, second_a, second_b = adapter
    hidden = np.tanh(inputs @ (model.first + first_b @ first_a).T)
    return hidden, hidden @ (model.second + second_b @ second_a).T


def _labelled(model: Model, inputs: Floats) -> Data:
    return Data(inputs, np.argmax(np.tanh(inputs @ model.teacher_first.T) @ model.teacher_second.T, axis=1))


def _picked(data: Data, places: NDArray[np.int64]) -> Data:
    return Data(data.inputs[places], data.classes[places])


def _log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[Any] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
