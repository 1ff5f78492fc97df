"""Arrays on a device for one kernel of a decode step at a time, and what float64 says the kernel must leave."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from custom_cuda_oracle import dp4a, reference
from numpy.typing import ArrayLike, NDArray

from enginecmp_custom_cuda.compiling import compile_cubin
from enginecmp_custom_cuda.device import Device, build
from enginecmp_custom_cuda.engine.decode import geometry
from enginecmp_custom_cuda.engine.decode.step import defines
from enginecmp_custom_cuda.engine.memory import params
from enginecmp_custom_cuda.weights.kinds import KINDS, decode, encode
from enginecmp_custom_cuda.weights.packing import pack

Array = NDArray[Any]
PAGE = 64


class Choice(NamedTuple):
    """What decode.cu is compiled with."""

    kind: str
    exact: bool
    kv: str
    head_dim: int
    batch: int

    @property
    def quantized(self) -> bool:
        """Whether activations are int8."""
        return KINDS[self.kind].scaled and not self.exact

    @property
    def element(self) -> type[np.floating[Any]]:
        """Of the cache."""
        return np.float16 if self.kv == "f16" else np.float32


CHOICES = (
    Choice("Q8_0", False, "f16", 64, 1),
    Choice("Q4_0", False, "f32", 32, 2),
    Choice("F32", False, "f32", 16, 1),
    Choice("F16", False, "f16", 96, 4),
    Choice("BF16", False, "f32", 128, 1),
    Choice("Q8_0", True, "f16", 128, 2),
    Choice("Q4_0", True, "f32", 96, 1),
    Choice("Q8_0", False, "f16", 16, 8),
)
"""Every kind, activation, cache, head and batch at least once."""


def warm(device: Device) -> None:
    """Compile all choices, two at a time; later they come from the cache."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda choice: compile_cubin("decode", defines(*choice), device.architecture), CHOICES))


class Weights(NamedTuple):
    """A random matrix: a file's rows, (rows, row bytes), and its place on the device."""

    raw: NDArray[np.uint8]
    on_device: params.Matrix


class Rig:
    """Arrays on a device, freed together, and the kernels of one choice."""

    def __init__(self, device: Device, choice: Choice, seed: int = 0) -> None:
        self.device = device
        self.choice = choice
        self.module = build(device, "decode", defines(*choice))
        self.random = np.random.default_rng(seed)
        self._held: list[Any] = []

    def put(self, array: ArrayLike) -> int:
        """Return the address of a copy, in an allocation of exactly its size."""
        array = np.ascontiguousarray(array)
        self._held.append(self.device.allocate(max(1, array.nbytes), "a test's array"))
        self.device.upload(self._held[-1].address, array)
        return int(self._held[-1].address)

    def nans(self, *shape: int, dtype: type = np.float32) -> int:
        """Return the address of an array of NaNs: what is not written stays one."""
        return self.put(np.full(shape, np.nan, dtype))

    def normal(self, *shape: int) -> NDArray[np.float32]:
        """Return random float32."""
        return self.random.normal(size=shape).astype(np.float32)

    def matrix(self, rows: int, columns: int, values: Array | None = None) -> Weights:
        """Return a random matrix on the device, rows of length about 1."""
        if values is None:
            values = self.normal(rows, columns) / np.float32(np.sqrt(columns))
        raw = encode(values, self.choice.kind)
        packed = pack(raw, self.choice.kind, rows, columns)
        return Weights(raw, params.Matrix(self.put(packed), rows, columns))

    def product(self, x: Array, weights: Weights) -> Array:
        """Return weights times x in float64, x as the kernels round it; (B, rows)."""
        if self.choice.quantized:
            return dp4a.multiply(dp4a.quantize(x), weights.raw, self.choice.kind).sums
        return reference.linear(x, decode(weights.raw, self.choice.kind))

    def normed(self, x: Array, norm: Array, weights: Weights, epsilon: float) -> Array:
        """Return weights times the norm of x.

        The kernels round x * norm to int8 and put 1 / rms into the sums: the same but for the last bit before rounding.
        """
        inverse = 1 / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + epsilon)
        expected: Array = self.product(x * norm, weights) * inverse
        return expected

    def multiply(
        self, name: str, arguments: ctypes.Structure, split_k: int, blocks: int, *, overlap: bool = False
    ) -> None:
        """Run a matrix kernel."""
        arguments.split_k = split_k
        choice, columns = self.choice, arguments.w.columns
        shared = geometry.activation_bytes(columns, choice.kind, choice.quantized, choice.batch)
        self.launch(name, blocks, arguments, shared, overlap=overlap)

    def launch(
        self,
        name: str,
        grid: int | tuple[int, int, int],
        arguments: ctypes.Structure,
        shared: int = 0,
        block: int = 256,
        *,
        overlap: bool = False,
    ) -> None:
        """Run a kernel; wait for it unless it may overlap with the next."""
        self.device.launch(self.module.kernel(name), grid, block, shared, arguments, overlap=overlap)
        if not overlap:
            self.device.synchronize()

    def get(self, address: int, shape: int | Sequence[int], dtype: type = np.float32) -> Array:
        """Return an array's content."""
        return self.device.download(address, tuple(np.atleast_1d(shape)), dtype)

    def close(self) -> None:
        """Free all arrays."""
        for memory in self._held:
            memory.free()
        self._held = []

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Paged:
    """A cache of one layer: pages in random order, NaN where nothing was stored."""

    def __init__(self, rig: Rig, kv_heads: int, positions: NDArray[np.int32]) -> None:
        """Positions: the last one of each sequence, below 0 for none; pages reach to the end of its page."""
        self.rig, self.kv_heads = rig, kv_heads
        stride = int(positions.max()) // PAGE + 2
        used = [int(position) // PAGE + 1 for position in positions]
        numbers = rig.random.permutation(sum(used))
        # Entries behind the last page lead out of the cache.
        self.table = np.full((len(positions), stride), 1 << 24, np.int32)
        for slot, count in enumerate(used):
            self.table[slot, :count], numbers = numbers[:count], numbers[count:]
        shape = (max(1, sum(used)), kv_heads, 2, PAGE, rig.choice.head_dim)
        self.pages = np.full(shape, np.nan, rig.choice.element)

    def fill(self, slot: int, count: int) -> tuple[Array, Array]:
        """Store random keys and values of the first positions; return them as float64, (count, kv_heads, D)."""
        both = self.rig.normal(2, count, self.kv_heads, self.rig.choice.head_dim).astype(self.rig.choice.element)
        for position in range(count):
            self.at(slot, position)[...] = both[:, position].transpose(1, 0, 2)
        return both[0].astype(np.float64), both[1].astype(np.float64)

    def at(self, slot: int, position: int) -> Array:
        """Return a view of a position's keys and values, (kv_heads, 2, D)."""
        return self.pages[self.table[slot, position // PAGE], :, :, position % PAGE]

    def upload(self) -> params.Cache:
        """Put pages and table on the device."""
        self.address = self.rig.put(self.pages)
        return params.Cache(self.address, self.rig.put(self.table), self.table.shape[1], self.kv_heads)

    def download(self) -> Array:
        """Return the pages as the device has them now."""
        return self.rig.get(self.address, self.pages.shape, self.rig.choice.element)


def assert_close(actual: Array, expected: Array, tolerance: float) -> None:
    """Compare relative to the largest expected value; NaNs must be where they are expected."""
    scale = np.nanmax(np.abs(expected)) if expected.size and not np.isnan(expected).all() else 1.0
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * float(scale))
