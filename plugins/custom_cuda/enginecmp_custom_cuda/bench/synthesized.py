"""A model's matrices on the device without a file: as many layers as no cache holds, so that kernels read memory.

Every matrix has memory of its own. What is in it repeats after some tiles, which no kernel can make use of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec
import numpy as np

from enginecmp import read_gguf
from enginecmp.models import synth_shapes
from enginecmp.models.decoder import RopeConfig

from ..config import ARCHITECTURES, ModelConfig, read_config
from ..device import Device, Memory
from ..weights.kinds import encode
from ..weights.model import DeviceLayer, DeviceMatrix, DeviceModel
from ..weights.packing import TILE_ROWS, pack, packed_bytes
from ..weights.rope import rope_table

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray

SHAPES = {name: shape for name, shape in synth_shapes.SHAPES.items() if shape.architecture in ARCHITECTURES}
"""What a model may look like without a file of it, by name."""

TINY_VOCABULARY = 320
"""Of shapes that name none."""

PATTERN_TILES = 8
BEYOND_CACHE = 3
"""The smallest matrix of all layers together is so many times the L2 cache."""

SHARE_OF_MEMORY = 0.3
DRY_LAYERS = 2


class Arrays:
    """Arrays on a device, freed together.

    Args:
        device: where.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._memory: list[Memory] = []

    def room(self, nbytes: int) -> int:
        """Return the address of fresh memory."""
        self._memory.append(self.device.allocate(max(nbytes, 16), "a measurement"))
        return self._memory[-1].address

    def put(self, array: ArrayLike, dtype: DTypeLike) -> int:
        """Return the address of a copy of an array."""
        array = np.ascontiguousarray(array, dtype)
        address = self.room(array.nbytes)
        self.device.upload(address, array)
        return address

    def repeat(self, pattern: NDArray[np.uint8], nbytes: int) -> int:
        """Return the address of fresh memory, filled with a pattern over and over."""
        address = self.room(nbytes)
        fill(self.device, address, pattern, nbytes)
        return address

    def close(self) -> None:
        """Free everything."""
        self.device.synchronize()
        for memory in self._memory:
            memory.free()
        self._memory.clear()


def fill(device: Device, address: int, pattern: NDArray[np.uint8], nbytes: int) -> None:
    """Fill memory with a pattern over and over; each copy on the device doubles what is there."""
    done = min(pattern.nbytes, nbytes)
    device.upload(address, pattern.reshape(-1)[:done])
    while done < nbytes:
        more = min(done, nbytes - done)
        device.copy(address + done, address, more)
        done += more
    device.synchronize()


@dataclass(frozen=True)
class Synthesized:
    """What sessions and steps ask of a `DeviceModel`."""

    config: ModelConfig
    layers: tuple[DeviceLayer, ...]
    output_norm: int
    embedding: DeviceMatrix
    head: DeviceMatrix
    rope: int
    positions: int
    weights_bytes: int


def shape_of(wanted: str, positions: int) -> tuple[ModelConfig, str]:
    """Return a model's shape and the type of its matrices.

    Args:
        wanted: path of a GGUF file, or the name of a shape, whose matrices are Q8_0.
        positions: that a sequence may have.

    Raises:
        UnsupportedModel: the kernels do not compute what the file asks for.
    """
    if wanted not in SHAPES:
        file = read_gguf(wanted)
        return read_config(file, positions), file.tensors["blk.0.ffn_down.weight"].type
    shape = SHAPES[wanted]
    rope = RopeConfig(
        base=shape.rope_base,
        dimensions=shape.head_dim,
        interleaved=shape.architecture == "llama",
        position_scale=1.0,
        magnitude=1.0,
        factors=None,
    )
    config = ModelConfig(
        architecture=shape.architecture,
        layers=shape.layers,
        width=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        feed_forward=shape.feed_forward,
        epsilon=shape.epsilon,
        context_length=shape.context,
        sliding_window=0,
        rope=rope,
        vocabulary=shape.vocabulary or TINY_VOCABULARY,
    )
    return config, "Q8_0"


def synthesize(
    device: Device, arrays: Arrays, config: ModelConfig, kind: str, positions: int, layers: int | None = None
) -> DeviceModel:
    """Return a model of a shape, its memory owned by `arrays`.

    Args:
        device: where.
        arrays: frees it.
        config: the shape; it gets another number of layers.
        kind: of all matrices.
        positions: of the rotary table.
        layers: as many; when not given, as many as no cache holds.
    """
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {
        "qkv": (width + 2 * kv_width, config.width),
        "output": (config.width, width),
        "gate_up": (2 * config.feed_forward, config.width),
        "down": (config.width, config.feed_forward),
    }
    random = np.random.default_rng(11)
    patterns = {columns: pattern(random, columns, kind) for _, columns in shapes.values()}
    sizes = {name: packed_bytes(rows, columns, kind) for name, (rows, columns) in shapes.items()}
    layers = layers or layers_for(device, min(sizes.values()), sum(sizes.values()), config.layers)

    def matrix(rows: int, columns: int) -> DeviceMatrix:
        nbytes = packed_bytes(rows, columns, kind)
        return DeviceMatrix(arrays.repeat(patterns[columns], nbytes), rows, columns, kind, nbytes)

    norm = arrays.put(np.ones(max(config.width, width)), np.float32)
    made = tuple(
        DeviceLayer(
            attention_norm=norm,
            qkv_bias=0,
            ffn_norm=norm,
            **{name: matrix(*shape) for name, shape in shapes.items()},
        )
        for _ in range(layers)
    )
    head = matrix(config.vocabulary, config.width)
    rope = arrays.put(rope_table(config.rope, None, 0, positions), np.float32)
    nbytes = layers * sum(sizes.values()) + head.nbytes
    model = Synthesized(msgspec.structs.replace(config, layers=layers), made, norm, head, head, rope, positions, nbytes)
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
