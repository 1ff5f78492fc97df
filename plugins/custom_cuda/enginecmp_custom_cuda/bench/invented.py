"""A model's matrices on the device without a file: as many layers as no cache holds, so that kernels read memory.

Every matrix has memory of its own. What is in it repeats after some tiles, which no kernel can make use of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import numpy as np

from ..config import ModelConfig
from ..device import Device
from ..oracle.reference import rope_table
from ..weights.kinds import encode
from ..weights.model import DeviceLayer, DeviceMatrix, DeviceModel
from ..weights.packing import TILE_ROWS, pack, packed_bytes
from .lab import Lab

if TYPE_CHECKING:
    from numpy.typing import NDArray

PATTERN_TILES = 8
BEYOND_CACHE = 3
"""The smallest matrix of all layers together is so many times the L2 cache."""

SHARE_OF_MEMORY = 0.3
DRY_LAYERS = 2


@dataclass(frozen=True)
class Invented:
    """What `engine` asks of a `DeviceModel`."""

    config: ModelConfig
    layers: tuple[DeviceLayer, ...]
    output_norm: int
    embedding: DeviceMatrix
    head: DeviceMatrix
    rope: int
    positions: int


def invent(device: Device, lab: Lab, config: ModelConfig, kind: str, positions: int) -> DeviceModel:
    """Return a model of a shape, its memory owned by `lab`.

    Args:
        device: where.
        lab: frees it.
        config: the shape; it gets another number of layers.
        kind: of all matrices.
        positions: of the rotary table.
    """
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {
        "qkv": (width + 2 * kv_width, config.hidden),
        "output": (config.hidden, width),
        "gate_up": (2 * config.inner, config.hidden),
        "down": (config.hidden, config.inner),
    }
    random = np.random.default_rng(11)
    patterns = {columns: pattern(random, columns, kind) for _, columns in shapes.values()}
    sizes = {name: packed_bytes(rows, columns, kind) for name, (rows, columns) in shapes.items()}
    layers = layers_for(device, min(sizes.values()), sum(sizes.values()), config.layers)

    def matrix(rows: int, columns: int) -> DeviceMatrix:
        nbytes = packed_bytes(rows, columns, kind)
        return DeviceMatrix(lab.repeat(patterns[columns], nbytes), rows, columns, kind, nbytes)

    norm = lab.put(np.ones(max(config.hidden, width)), np.float32)
    made = tuple(
        DeviceLayer(
            attention_norm=norm,
            qkv_bias=0,
            ffn_norm=norm,
            **{name: matrix(*shape) for name, shape in shapes.items()},
        )
        for _ in range(layers)
    )
    head = matrix(config.vocabulary, config.hidden)
    rope = lab.put(rope_table(config.rope, None, positions), np.float32)
    model = Invented(replace(config, layers=layers), made, norm, head, head, rope, positions)
    return cast(DeviceModel, model)


def pattern(random: np.random.Generator, columns: int, kind: str) -> NDArray[np.uint8]:
    """Return some packed tiles of random weights, as long as rows of so many columns."""
    weights = random.standard_normal((PATTERN_TILES * TILE_ROWS, columns)) / math.sqrt(columns)
    return pack(encode(weights.astype(np.float32), kind), kind, *weights.shape)


def layers_for(device: Device, smallest: int, together: int, least: int) -> int:
    """Return how many layers are enough for no cache to hold one kind of matrix, as far as memory goes.

    Args:
        device: whose cache and memory count.
        smallest: bytes of a layer's smallest matrix.
        together: bytes of a layer.
        least: layers.
    """
    if not device.timed:
        return DRY_LAYERS
    wanted = math.ceil(BEYOND_CACHE * device.attribute("L2_CACHE_SIZE") / smallest)
    room = int(SHARE_OF_MEMORY * device.free_bytes() / together)
    return max(1, min(max(least, wanted), room))
