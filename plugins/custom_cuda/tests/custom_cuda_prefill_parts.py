"""Single kernels of the CUDA prefill, run on a device with arrays in and arrays out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from enginecmp_custom_cuda.device import Device, build
from enginecmp_custom_cuda.engine.decode.geometry import attention_grid
from enginecmp_custom_cuda.engine.memory.params import Cache, Matrix
from enginecmp_custom_cuda.engine.prefill.gemm import ACTIVATION_BYTES, Activation, Activations, TileMultiplier
from enginecmp_custom_cuda.engine.prefill.params import Embed, Finish, FinishKind, Flash, Rows, Split
from enginecmp_custom_cuda.weights.kinds import encode
from enginecmp_custom_cuda.weights.model import DeviceMatrix
from enginecmp_custom_cuda.weights.packing import pack

PAGE = 64
CACHE_TYPES: dict[str, DTypeLike] = {"KV_F16": np.float16, "KV_F32": np.float32}


@dataclass
class Bench:
    """A device on which a test puts arrays.

    Attributes:
        device: where.
        kv: the cache's type, a define.
        head_dim: a define.
        splits: of every GEMM.
        shape: kernel of every GEMM; by the number of tokens when None.
    """

    device: Device
    kv: str = "KV_F16"
    head_dim: int = 16
    splits: int | None = 1
    shape: str | None = None
    _memory: list[Any] = field(default_factory=list)

    @property
    def defines(self) -> dict[str, str]:
        """What all modules are compiled with."""
        return {"KV": self.kv, "HEAD_DIM": str(self.head_dim)}

    def put(self, array: ArrayLike, dtype: DTypeLike) -> int:
        """Return the address of a copy of an array."""
        array = np.ascontiguousarray(array, dtype)
        address = self.room(array.nbytes)
        self.device.upload(address, array)
        return address

    def room(self, nbytes: int) -> int:
        """Return the address of fresh memory."""
        self._memory.append(self.device.allocate(max(nbytes, 1), "a test"))
        return int(self._memory[-1].address)

    def matrix(self, weights: ArrayLike, kind: str) -> DeviceMatrix:
        """Return packed weights, (rows, columns) float32 or a file's bytes with a leading type uint8."""
        weights = np.asarray(weights)
        rows, columns = weights.shape
        packed = pack(encode(weights.astype(np.float32), kind), kind, rows, columns)
        return DeviceMatrix(self.put(packed, np.uint8), rows, columns, kind, packed.nbytes)

    def small(self, kernel: str, blocks: int, params: ctypes.Structure, weight: str = "F32") -> None:
        """Run a kernel of prefill.cu."""
        module = build(self.device, "prefill", {**self.defines, "WEIGHT": f"WEIGHT_{weight}"})
        self.device.launch(module.kernel(kernel), blocks, 128, 0, params)

    def activations(self, x: NDArray[np.float32], activation: Activation) -> Activations:
        """Return activations, (T, columns), in a type, by the kernels themselves."""
        tokens, columns = x.shape
        source = self.put(x, np.float32)
        if activation == "f32":
            return Activations(source, 0, 0, tokens)
        stride = -(-tokens // 4) * 4
        out = self.room(tokens * columns * ACTIVATION_BYTES[activation])
        scales = self.room(columns // 32 * stride * 4)
        self.small(f"quantize_{activation}", tokens, Rows(source, 0, out, scales, 0.0, columns, stride))
        return Activations(out, scales, stride, tokens)

    def product(self, matrix: DeviceMatrix, given: Activations, activation: Activation, finish: Finish) -> None:
        """Run a GEMM."""
        reduce = build(self.device, "prefill", {**self.defines, "WEIGHT": "WEIGHT_F32"})
        multiplier = TileMultiplier(
            self.device, matrix.kind, activation, self.defines, reduce, splits=self.splits, shape=self.shape
        )
        partial = self.room(multiplier.partial_bytes(matrix.rows, matrix.columns, given.tokens))
        for launch in multiplier.launches(matrix, given, finish, partial):
            launch.launch()

    def multiply(
        self, x: ArrayLike, weights: ArrayLike, kind: str, activation: Activation, how: FinishKind = FinishKind.STORE
    ) -> NDArray[np.float32]:
        """Return x, (T, columns), times weights, (rows, columns), finished; what is added to is 1."""
        x = np.asarray(x, np.float32)
        matrix = self.matrix(weights, kind)
        width = matrix.rows // 2 if how == FinishKind.SWIGLU else matrix.rows
        out = self.put(np.ones((len(x), width)), np.float32)
        self.product(matrix, self.activations(x, activation), activation, Finish(out=out, kind=how))
        return self.device.download(out, (len(x), width), np.float32)

    def rows(
        self, kernel: str, x: NDArray[np.float32], dtype: DTypeLike, norm: ArrayLike | None = None, epsilon: float = 0.0
    ) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Run norm_* or quantize_*; return (T, columns) and the scales, (T, columns / 32)."""
        tokens, columns = x.shape
        stride = -(-tokens // 4) * 4
        out = self.room(tokens * columns * np.dtype(dtype).itemsize)
        scales = self.put(np.zeros((columns // 32, stride)), np.float32)
        weight = 0 if norm is None else self.put(norm, np.float32)
        params = Rows(self.put(x, np.float32), weight, out, scales, epsilon, columns, stride)
        self.small(kernel, tokens, params)
        found = self.device.download(scales, (columns // 32, stride), np.float32)[:, :tokens].T
        return self.device.download(out, (tokens, columns), dtype), found

    def embed(self, table: ArrayLike, kind: str, ids: ArrayLike, position: ArrayLike) -> NDArray[np.float32]:
        """Run embed."""
        matrix = self.matrix(table, kind)
        tokens = len(np.asarray(ids))
        x = self.room(tokens * matrix.columns * 4)
        where = Matrix(matrix.address, matrix.rows, matrix.columns)
        self.small("embed", tokens, Embed(where, self.put(ids, np.int32), self.put(position, np.int32), x), kind)
        return self.device.download(x, (tokens, matrix.columns), np.float32)

    def attend(
        self, kernel: str, q: NDArray[Any], pages: Pages, position: ArrayLike, slot: ArrayLike, tile_tokens: int
    ) -> NDArray[np.float32]:
        """Run flash_*; q is (T, heads, head_dim)."""
        tokens, heads, _ = q.shape
        out = self.room(q.size * 4)
        cache = self.cache(pages)
        params = Flash(
            self.put(q, np.float32),
            cache,
            self.put(position, np.int32),
            self.put(slot, np.int32),
            out,
            tokens,
            tile_tokens,
            heads,
        )
        module = build(self.device, kernel, self.defines)
        rows = {"flash_f16": 64, "flash_f32": 16}[kernel]
        grid = (-(-tokens // tile_tokens), pages.kv_heads, -(-heads // pages.kv_heads // rows))
        self.device.launch(module.kernel(kernel), grid, 128, 0, params)
        return self.device.download(out, q.shape, np.float32)

    def attend_split(
        self, q: NDArray[Any], pages: Pages, position: ArrayLike, slot: ArrayLike, splits: int
    ) -> NDArray[np.float32]:
        """Run attention_split and attention_merge; q is (T, heads, head_dim)."""
        tokens, heads, head_dim = q.shape
        # What is not written must not be read.
        partial = self.put(np.full(q.size * splits, np.nan), np.float32)
        partial_ml = self.put(np.full(tokens * heads * splits * 2, np.nan), np.float32)
        out = self.put(np.full(q.shape, np.nan), np.float32)
        at = self.put(position, np.int32), self.put(slot, np.int32)
        params = Split(self.put(q, np.float32), self.cache(pages), *at, out, partial, partial_ml, tokens, heads, splits)
        module = build(self.device, "attention_split", self.defines | {"BATCH": "8"})
        tiles = attention_grid(heads, pages.kv_heads, head_dim, np.dtype(CACHE_TYPES[self.kv]).itemsize, 1, 1, 1).grid[
            2
        ]
        grid = (splits, pages.kv_heads, tokens * tiles)
        self.device.launch(module.kernel("attention_split"), grid, 256, 0, params)
        if splits > 1:
            self.device.launch(
                module.kernel("attention_merge"), (-(-heads * head_dim // 512), tokens, 1), 128, 0, params
            )
        return self.device.download(out, q.shape, np.float32)

    def cache(self, pages: Pages) -> Cache:
        """Return a copy of a cache on the device."""
        memory = self.put(pages.memory, CACHE_TYPES[self.kv])
        return Cache(memory, self.put(pages.table, np.int32), pages.table.shape[1], pages.kv_heads)

    def close(self) -> None:
        """Free everything."""
        self.device.synchronize()
        for memory in self._memory:
            memory.free()
        self._memory.clear()


@contextmanager
def bench(device: Device, **choices: Any) -> Iterator[Bench]:
    """Give a bench, and free what it took."""
    made = Bench(device, **choices)
    try:
        yield made
    finally:
        made.close()


class Pages:
    """A cache on the host, its unwritten places NaN.

    Args:
        slots: sequences.
        length: most positions of each.
        kv_heads: of the model.
        head_dim: of the model.
        random: where pages lie.
    """

    def __init__(self, slots: int, length: int, kv_heads: int, head_dim: int, random: np.random.Generator) -> None:
        stride = -(-length // PAGE)
        self.kv_heads = kv_heads
        self.table = random.permutation(slots * stride + 2)[: slots * stride].reshape(slots, stride)
        self.memory = np.full((slots * stride + 2, kv_heads, 2, PAGE, head_dim), np.nan, np.float32)

    def write(self, slot: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Put a sequence's keys and values there, each (S, kv_heads, head_dim)."""
        for which, source in enumerate((keys, values)):
            for position, row in enumerate(source):
                self.memory[self.table[slot, position // PAGE], :, which, position % PAGE] = row

    def read(self, memory: NDArray[Any], slot: int, which: int, positions: int) -> NDArray[Any]:
        """Return a sequence's keys (0) or values (1) out of memory, (S, kv_heads, head_dim)."""
        rows = [memory[self.table[slot, at // PAGE], :, which, at % PAGE] for at in range(positions)]
        return np.stack(rows)
