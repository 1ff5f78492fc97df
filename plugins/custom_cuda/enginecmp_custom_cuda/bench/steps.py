"""Every kernel of a decode step alone: what it leaves, from what it found on the device, against the oracle.

A cache full of random keys and values stands in for a prompt, so that no kernel is judged by another one's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import GGUFFile, read_gguf

from ..config import ModelConfig
from ..device import Device
from ..engine.decode import DecodeBuffers, DecodeSettings, DecodeStep
from ..engine.pages import PAGE_TOKENS, Cache
from ..oracle import dp4a, reference
from ..weights.kinds import decode
from ..weights.model import load_model
from .context import Context
from .lab import EXACT_TOLERANCE, ROUNDED_TOLERANCE, distance, tiny_model

Array = NDArray[np.float64]
CONTEXT = 2048
CACHE_DTYPES = {"f16": np.float16, "f32": np.float32}


@dataclass(frozen=True)
class Case:
    """One model and one way of computing it."""

    architecture: str
    kind: str
    batch: int
    exact: bool
    kv: str
    shape: dict[str, int]


LLAMA = {"hidden": 512, "heads": 8, "kv_heads": 2, "head_dim": 64, "feed_forward": 1056}
QWEN = {"hidden": 448, "heads": 7, "kv_heads": 1, "head_dim": 64, "feed_forward": 608}
PHI = {"hidden": 384, "heads": 4, "kv_heads": 4, "head_dim": 96, "feed_forward": 512}
WIDE = {"hidden": 1024, "heads": 8, "kv_heads": 4, "head_dim": 128, "feed_forward": 2048}

CASES = (
    Case("llama", "Q8_0", 1, False, "f16", LLAMA),
    Case("llama", "Q8_0", 2, False, "f16", LLAMA),
    Case("llama", "Q8_0", 4, False, "f16", LLAMA),
    Case("llama", "Q8_0", 8, False, "f16", LLAMA),
    Case("llama", "F32", 1, True, "f32", LLAMA),
    Case("qwen2", "Q8_0", 1, False, "f16", QWEN),
    Case("phi3", "Q8_0", 1, False, "f16", PHI),
    Case("llama", "Q4_0", 1, False, "f16", WIDE),
    Case("llama", "BF16", 2, False, "f16", LLAMA),
    Case("llama", "F16", 4, False, "f16", LLAMA),
    Case("llama", "Q4_0", 8, False, "f16", WIDE),
    Case("phi3", "Q8_0", 8, True, "f32", PHI),
)

DRY_CASES = (Case("llama", "Q8_0", 2, False, "f16", {}),)


def check(context: Context, device: Device) -> None:
    """Check the kernels of every case."""
    for case in DRY_CASES if context.dry else CASES:
        what = f"{case.architecture} {case.kind} batch {case.batch}{' exact' if case.exact else ''}"
        if context.enough(1.5, f"the step's kernels of {what}"):
            with context.guarded(f"step, {what}"):
                for kernel, error in errors(context, device, case):
                    tolerance = (
                        EXACT_TOLERANCE if case.exact or case.kind not in ("Q8_0", "Q4_0") else ROUNDED_TOLERANCE
                    )
                    context.check(f"step's {kernel}", {"case": what}, error <= tolerance, f"error {error:.1e}")


def errors(context: Context, device: Device, case: Case) -> Iterator[tuple[str, float]]:
    """Yield every kernel's distance from the oracle, 0 or infinity where it must be exact."""
    positions = np.array([700, 0, 63, 64, 1900, 129, 1, 255][: case.batch])
    context_tokens = 256 if context.dry else CONTEXT
    positions = np.minimum(positions, context_tokens - 2)
    info = tiny_model(context.folder, case.architecture, case.kind, layers=1, **case.shape)
    file = read_gguf(info.path)
    model = load_model(device, file, context_tokens)
    cache = Cache(device, model.config, case.kv, context_tokens, case.batch)
    settings = DecodeSettings(positions=context_tokens, kv=case.kv, exact=case.exact, logits=True)
    step = DecodeStep(device, model, case.batch, settings, cache)
    try:
        look = Look(device, file, model.config, cache, step.buffers, case, positions)
        for slot, position in enumerate(positions):
            cache.pages.promise(slot, context_tokens)
            cache.grow(slot, context_tokens)
            step.seat(slot, int(position), look.tokens[slot])
        look.fill_cache()
        yield "begin", look.embedding_error(look.tokens)
        for phase in step.phases:
            for launch in phase.launches:
                yield from getattr(look, launch.kernel.name)(launch.launch)
    finally:
        for each in (step, cache, model):
            each.close()


class Look:
    """What a step's kernels find and leave; a method for each, by its name, that launches it.

    All arrays have one row a sequence.
    """

    def __init__(
        self,
        device: Device,
        file: GGUFFile,
        config: ModelConfig,
        cache: Cache,
        buffers: DecodeBuffers,
        case: Case,
        positions: NDArray[Any],
    ) -> None:
        self._device, self._file, self._config, self._cache, self._buffers = device, file, config, cache, buffers
        self._case, self._positions = case, positions
        self._random = np.random.default_rng(5)
        self.tokens = [int(token) for token in self._random.integers(0, config.vocabulary, case.batch)]
        self._multiply: Callable[[Array, NDArray[np.uint8], str], Array] = exact_linear if case.exact else dp4a.linear

    def fill_cache(self) -> None:
        """Write random keys and values everywhere."""
        values = self._random.standard_normal(self._cache_shape).astype(CACHE_DTYPES[self._case.kv])
        self._device.upload(self._cache.layer_address(0), values)

    def embedding_error(self, tokens: list[int]) -> float:
        """Return whether x is the embedding of some tokens, to the bit: 0, or infinity."""
        raw = self._file.raw("token_embd.weight")[tokens]
        expected = decode(raw, self._file.tensors["token_embd.weight"].type)
        return 0.0 if np.array_equal(self._x(), expected) else float("inf")

    def qkv(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check q, and the keys and values that are new in the cache."""
        config, batch = self._config, self._case.batch
        x = reference.rms_norm(self._x(), self._vector("attn_norm.weight"), config.epsilon)
        fused = "blk.0.attn_qkv.weight" in self._file.tensors
        names = ["attn_qkv"] if fused else ["attn_q", "attn_k", "attn_v"]
        rows = np.concatenate([self._project(x, name) for name in names], axis=-1)
        q, k, v = np.split(rows, np.cumsum([config.heads, config.kv_heads]) * config.head_dim, axis=-1)
        table = self._rope()
        launch()
        found = self._device.download(self._buffers.q, (batch, config.heads, config.head_dim), np.float32)
        yield "qkv: q", distance(found, self._turn(q.reshape(batch, config.heads, -1), table))
        # (batch, kv_heads, K and V, head_dim)
        new = np.stack([self._past(slot, position)[-1] for slot, position in enumerate(self._positions)])
        turned = self._turn(k.reshape(batch, config.kv_heads, -1), table)
        stored = np.stack((turned, v.reshape(batch, config.kv_heads, -1)), axis=2)
        # The cache itself rounds to half precision.
        error = distance(new, stored)
        yield "qkv: cache", max(0.0, error - 5e-4) if self._case.kv == "f16" else error

    def attention(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Run; what it leaves is judged with `output`, which merges it."""
        launch()
        yield from ()

    def output(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check attention and the product behind it."""
        config, before = self._config, self._x()
        q = self._device.download(self._buffers.q, (self._case.batch, config.heads, config.head_dim), np.float32)
        mixed = []
        for slot, position in enumerate(self._positions):
            past = self._past(slot, position).astype(np.float64)  # (S, kv_heads, 2, head_dim)
            mixed.append(reference.attention(q[slot][None], past[:, :, 0], past[:, :, 1]).reshape(-1))
        expected = self._project(np.stack(mixed), "attn_output")
        launch()
        yield "attention and output", distance(self._x() - before, expected)

    def gate_up(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check h."""
        x = reference.rms_norm(self._x(), self._vector("ffn_norm.weight"), self._config.epsilon)
        if self._config.architecture == "phi3":
            gate, up = np.split(self._project(x, "ffn_up"), 2, axis=-1)
        else:
            gate, up = self._project(x, "ffn_gate"), self._project(x, "ffn_up")
        launch()
        yield "gate_up", distance(self._h(), reference.swiglu(gate, up))

    def down(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check what is added to x."""
        expected, before = self._project(self._h(), "ffn_down"), self._x()
        launch()
        yield "down", distance(self._x() - before, expected)

    def head(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check logits."""
        x = reference.rms_norm(self._x(), self._file.float32("output_norm.weight"), self._config.epsilon)
        name = "output.weight" if "output.weight" in self._file.tensors else "token_embd.weight"
        expected = self._multiply(x, self._file.raw(name), self._file.tensors[name].type)
        launch()
        yield "head", distance(self._logits(), expected)

    def next(self, launch: Callable[[], None]) -> Iterator[tuple[str, float]]:
        """Check the choice, what it is handed to, and the embedding that begins the following step."""
        chosen = [int(token) for token in self._logits().argmax(axis=-1)]
        launch()
        ring = [self._buffers.ring.wait(slot) for slot in range(self._case.batch) for _ in range(2)]
        positions = self._device.download(self._buffers.position, self._case.batch, np.int32)
        right = ring[1::2] == chosen and ring[0::2] == self.tokens and (positions == self._positions + 1).all()
        yield "next", 0.0 if right else float("inf")
        yield "next: embedding", self.embedding_error(chosen)

    # Parts

    @property
    def _cache_shape(self) -> tuple[int, ...]:
        config = self._config
        return (self._cache.pages.count, config.kv_heads, 2, PAGE_TOKENS, config.head_dim)

    def _past(self, slot: int, position: int) -> NDArray[Any]:
        """Return a sequence's keys and values up to a position, (S, kv_heads, K and V, head_dim)."""
        pages = self._device.download(self._cache.layer_address(0), self._cache_shape, CACHE_DTYPES[self._case.kv])
        mine = pages[self._cache.pages.owned(slot)]  # (pages, kv_heads, 2, 64, head_dim)
        return mine.transpose(0, 3, 1, 2, 4).reshape(-1, *mine.shape[1:3], mine.shape[-1])[: position + 1]

    def _turn(self, x: Array, table: Array) -> Array:
        """Rotate (batch, heads, head_dim), rotated pairs beside each other as on the device."""
        rope = self._config.rope
        if rope.interleaved:
            return reference.rotate_interleaved(x, table)
        turned = reference.rotate_halves(x, table)
        order = np.arange(self._config.head_dim)
        order[: rope.dimensions] = np.arange(rope.dimensions).reshape(2, -1).T.reshape(-1)
        result: Array = turned[..., order]
        return result

    def _rope(self) -> Array:
        """Return the rows of the table at the sequences' positions, (batch, dimensions / 2, 2)."""
        rope = self._config.rope
        factors = None if rope.factors is None else self._file.float32(rope.factors)
        rows: Array = reference.rope_table(rope, factors, int(self._positions.max()) + 1)[self._positions]
        return rows

    def _project(self, x: Array, name: str) -> Array:
        tensor = f"blk.0.{name}.weight"
        y = self._multiply(x, self._file.raw(tensor), self._file.tensors[tensor].type)
        bias = f"blk.0.{name}.bias"
        return y + self._file.float32(bias) if bias in self._file.tensors else y

    def _vector(self, name: str) -> Array:
        return self._file.float32(f"blk.0.{name}").astype(np.float64)

    def _x(self) -> Array:
        shape = (self._case.batch, self._config.hidden)
        return self._device.download(self._buffers.x, shape, np.float32).astype(np.float64)

    def _h(self) -> Array:
        shape = (self._case.batch, self._config.inner)
        return self._device.download(self._buffers.h, shape, np.float32).astype(np.float64)

    def _logits(self) -> NDArray[np.float32]:
        shape = (self._case.batch, self._config.vocabulary)
        logits: NDArray[np.float32] = self._device.download(self._buffers.logits, shape, np.float32)
        return logits


def exact_linear(x: Array, raw: NDArray[np.uint8], kind: str) -> Array:
    """Multiply with the numbers that a file's bytes mean."""
    return reference.linear(x, decode(raw, kind))
