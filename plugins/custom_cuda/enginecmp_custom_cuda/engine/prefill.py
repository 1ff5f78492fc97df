"""The prefill: many tokens through all layers at once, of one sequence or of several.

Also the way of a decoding step for more sequences than decode.cu's batches hold: every sequence then brings one token.
The launches for a number of tokens are prepared once and kept; numbers are rounded up and the rest filled with empty
tokens (position -1), so that few are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp import EngineError

from ..compiling import build
from .gemm import (
    ACTIVATION_BYTES,
    BF16_CAPABILITY,
    TENSOR_CORES,
    Activation,
    Activations,
    Multiplier,
    Step,
    TileMultiplier,
    ceil_div,
    round_up,
)
from .pages import ELEMENT_BYTES, PAGE_TOKENS
from .params import Cache as CacheParams
from .params import Matrix
from .prefill_params import Embed, Finish, FinishKind, Flash, Rows
from .split_attention import MOST_TOKENS, SplitAttention

if TYPE_CHECKING:
    from ..device.device import Device
    from ..device.memory import Memory
    from ..device.module import Launch, Module
    from ..weights.model import DeviceMatrix, DeviceModel
    from .cublaslt import Backend

Group = Literal["embedding", "norm", "attention", "ffn", "lm_head"]
"""Components, by the names of `cmp_profile`."""

Numbers = ArrayLike | int
"""Of tokens: an array on the host, or the address of int32 values on the device."""

ROW_THREADS = 128
FLASH_THREADS = 128
FLASH_ROWS = {"flash_f16": 64, "flash_f32": 16}
"""Query rows of a block."""

KEPT_PROGRAMS = 24
SCORE_TOKENS = 64
"""Tokens whose logits are on the device at once."""


class CacheGeometry(Protocol):
    """What the prefill must know of the paged cache (`pages.Cache`)."""

    kind: str

    @property
    def table_address(self) -> int:
        """Where the block tables are: int32 (slots, stride)."""
        ...

    @property
    def table_stride(self) -> int:
        """Entries of one sequence's block table."""
        ...

    def layer_address(self, layer: int) -> int:
        """Where a layer's pages begin."""
        ...


@dataclass(frozen=True)
class Program:
    """The launches for one number of tokens, in order, with the component that each belongs to."""

    tokens: int
    steps: tuple[tuple[Group, Step], ...]

    def launch(self) -> None:
        """Run it, or record it while a graph is captured."""
        for _, step in self.steps:
            step.launch()


class Prefill:
    """Runs tokens through a model's layers.

    Args:
        device: where.
        model: its weights there.
        cache: keys and values; block tables must hold the pages of every position that is computed.
        precise: float32 activations for every kind of weights.
        max_tokens: most tokens of a call.
        library: multiplies the layers' matrices where activations are not float32; the project's own kernels without
            one. The head stays with those, as it is multiplied for few tokens at a time.

    Attributes:
        hidden: address of the residual, float32 [max_tokens][hidden]; row t is the last call's token t, before the
            last norm.
        max_tokens: most tokens of a call.
        nbytes: of its buffers.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        cache: CacheGeometry,
        *,
        precise: bool,
        max_tokens: int,
        library: Backend | None = None,
    ) -> None:
        self.max_tokens = max_tokens
        self._device = device
        self._model = model
        self._cache = cache
        config = model.config
        self._rows = bucket(max_tokens, round_up(max_tokens, 64))
        self._defines = {"KV": f"KV_{cache.kind.upper()}", "HEAD_DIM": str(config.head_dim)}
        self._module = self._build("prefill", model.embedding.kind)
        self._flash_name = "flash_f16" if cache.kind == "f16" and not precise else "flash_f32"
        self._flash = self._build(self._flash_name, None)
        self._split = SplitAttention(
            device,
            config,
            ELEMENT_BYTES[cache.kind],
            cache.table_stride * PAGE_TOKENS,
            self._defines,
            buckets(min(self._rows, MOST_TOKENS)),
        )
        inner = [each for layer in model.layers for each in _matrices(layer)]
        chosen = {kind: self._multiplier(kind, precise, library) for kind in sorted({each.kind for each in inner})}
        self._multipliers = {each.address: chosen[each.kind] for each in inner}
        self._multipliers[model.head.address] = self._multiplier(model.head.kind, precise)
        matrices = [*inner, model.head]
        self._programs: OrderedDict[tuple[int, bool], Program] = OrderedDict()
        self._heads: dict[int, Program] = {}
        self._allocate(matrices)

    def _allocate(self, matrices: list[DeviceMatrix]) -> None:
        config, rows = self._model.config, self._rows
        widest = max(each.columns for each in matrices)
        partial = max(
            self._multipliers[each.address].partial_bytes(each.rows, each.columns, tokens)
            for each in {(each.kind, each.rows, each.columns): each for each in matrices}.values()
            for tokens in buckets(rows)
        )
        attention = config.heads * config.head_dim
        most = max(ACTIVATION_BYTES[each.activation] for each in self._multipliers.values())
        self._logits_tokens = min(SCORE_TOKENS, rows)
        sizes = {
            "hidden": rows * config.hidden * 4,
            "activations": rows * widest * most,
            "scales": widest // 32 * rows * 4,
            "query": rows * attention * 4,
            "mixed": rows * attention * 4,
            "inner": rows * config.inner * 4,
            "partial": partial,
            "numbers": 3 * rows * 4,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += round_up(size, 256)
        self._memory = self._device.allocate(end, "the prefill's buffers")
        self._logits: Memory | None = None
        self.nbytes = end + self._split.nbytes
        self._at = {name: self._memory.address + offset for name, offset in offsets.items()}
        self.hidden = self._at["hidden"]

    def enqueue(
        self,
        ids: Numbers,
        position: Numbers,
        slot: Numbers,
        tokens: int | None = None,
        run: Callable[[Program], None] = Program.launch,
    ) -> None:
        """Compute tokens: their keys and values go to the cache, their residual to `hidden`.

        Tokens of one sequence must be neighbours, in ascending order. Addresses are read on the device, so that calls
        can be recorded in a graph; arrays are copied there first.

        Args:
            ids: (T,).
            position: (T,), in their sequences; below 0 for a token that is to be left out.
            slot: (T,), rows of the block table.
            tokens: T, where addresses are given.
            run: runs the launches; another way than one after the other, for instance a graph of them.

        Raises:
            EngineError: T is 0 or more than `max_tokens`, or the three have different lengths.
        """
        if isinstance(ids, int) and isinstance(position, int) and isinstance(slot, int):
            count = self._check_count(tokens or 0)
            rows, single = bucket(count, self._rows), count <= 64
            if rows > count:
                self._device.fill(self._at["numbers"], 3 * rows * 4, 0xFF)
            for place, address in enumerate((ids, position, slot)):
                self._device.copy(self._at["numbers"] + place * rows * 4, address, count * 4)
        else:
            numbers = [np.asarray(each, np.int32).ravel() for each in (ids, position, slot)]
            count = self._check_count(len(numbers[0]))
            if len({len(each) for each in numbers}) != 1:
                msg = (
                    "custom_cuda: expected as many positions and slots as ids, came "
                    f"{', '.join(str(len(each)) for each in numbers)}; pass one of each for a token"
                )
                raise EngineError(msg)
            rows = bucket(count, self._rows)
            table = np.full((3, rows), -1, np.int32)
            table[:, :count] = numbers
            self._device.upload(self._at["numbers"], table)
            single = len(np.unique(numbers[2])) * 2 > count and count <= MOST_TOKENS
        run(self.program(rows, single))

    def program(self, rows: int, single: bool) -> Program:
        """Return the launches for a number of tokens that is a bucket's.

        Args:
            rows: from `bucket`.
            single: most tokens, at most `MOST_TOKENS`, are their sequence's only ones: attention is split by positions.
        """
        key = (rows, single)
        if key not in self._programs:
            self._programs[key] = Program(rows, tuple(self._steps(rows, single)))
            while len(self._programs) > KEPT_PROGRAMS:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]

    def splits(self, tokens: int) -> int:
        """Return the most splits of the positions in attention, for a call of so many tokens that are single."""
        return self._split.splits(bucket(tokens, self._rows))

    def score(self, ids: ArrayLike, slot: int = 0, start: int = 0) -> NDArray[np.float32]:
        """Return next-token logits at every position of a prompt, shape (T, vocabulary).

        Args:
            ids: (T,); computed in pieces of `max_tokens`.
            slot: of the sequence, whose pages hold all T tokens.
            start: position of the first.
        """
        numbers = np.asarray(ids, np.int32).ravel()
        logits = np.empty((len(numbers), self._model.head.rows), np.float32)
        for first in range(0, len(numbers), self.max_tokens):
            piece = numbers[first : first + self.max_tokens]
            position = np.arange(start + first, start + first + len(piece))
            self.enqueue(piece, position, np.full(len(piece), slot))
            self._read_logits(logits[first : first + len(piece)])
        return logits

    def close(self) -> None:
        """Free the buffers, and what a library keeps of the weights."""
        self._programs.clear()
        for multiplier in self._multipliers.values():
            multiplier.close()
        self._split.close()
        self._memory.free()
        if self._logits is not None:
            self._logits.free()
            self._logits = None

    def _read_logits(self, to: NDArray[np.float32]) -> None:
        """Multiply the residual's first rows by the head, a bounded piece at a time."""
        vocabulary = self._model.head.rows
        if self._logits is None:
            self._logits = self._device.allocate(self._logits_tokens * vocabulary * 4, "logits")
        for first in range(0, len(to), self._logits_tokens):
            if first not in self._heads:
                tokens = min(self._logits_tokens, self._rows - first)
                hidden = self.hidden + first * self._model.config.hidden * 4
                self._heads[first] = self.head(hidden, tokens, self._logits.address)
            self._heads[first].launch()
            count = min(self._logits_tokens, len(to) - first)
            to[first : first + count] = self._device.download(self._logits.address, (count, vocabulary), np.float32)

    def head(self, x: int, tokens: int, logits: int) -> Program:
        """Return the launches that turn residuals into logits: the last norm, then the head.

        Args:
            x: address of float32 [tokens][hidden], such as `hidden` or rows copied from it.
            tokens: how many, at most `max_tokens`.
            logits: address of float32 [tokens][vocabulary].
        """
        model = self._model
        product = self._product("lm_head", model.head, tokens, Finish(kind=FinishKind.STORE, out=logits))
        return Program(tokens, (("norm", self._norm(x, model.output_norm, model.head, tokens)), *product))

    def _steps(self, tokens: int, single: bool) -> Iterator[tuple[Group, Step]]:
        """Yield all launches of a call."""
        model, config, at = self._model, self._model.config, self._at
        ids, position, slot = (at["numbers"] + place * tokens * 4 for place in range(3))
        yield "embedding", self._one("embed", tokens, Embed(_matrix(model.embedding), ids, position, self.hidden))
        for number, layer in enumerate(model.layers):
            cache = CacheParams(
                self._cache.layer_address(number),
                self._cache.table_address,
                self._cache.table_stride,
                config.kv_heads,
            )
            yield "norm", self._norm(self.hidden, layer.attention_norm, layer.qkv, tokens)
            rotate = Finish(
                out=at["query"],
                bias=layer.qkv_bias,
                rope=model.rope,
                position=position,
                slot=slot,
                cache=cache,
                heads=config.heads,
                rope_dims=config.rope.dimensions,
                kind=FinishKind.QKV,
            )
            yield from self._product("attention", layer.qkv, tokens, rotate)
            if single:
                for launch in self._split.launches(at["query"], cache, position, slot, at["mixed"], tokens):
                    yield "attention", launch
            else:
                yield "attention", self._attend(cache, position, slot, tokens)
            yield from self._onward("attention", at["mixed"], layer.output, tokens)
            yield "norm", self._norm(self.hidden, layer.ffn_norm, layer.gate_up, tokens)
            gate = Finish(kind=FinishKind.SWIGLU, out=at["inner"])
            yield from self._product("ffn", layer.gate_up, tokens, gate)
            yield from self._onward("ffn", at["inner"], layer.down, tokens)

    def _onward(self, group: Group, x: int, matrix: DeviceMatrix, tokens: int) -> Iterator[tuple[Group, Step]]:
        """Yield the launches of residual += matrix x."""
        add = Finish(kind=FinishKind.ADD, out=self.hidden)
        kind = self._multipliers[matrix.address].activation
        if kind == "f32":
            yield from self._product(group, matrix, tokens, add, x)
            return
        yield "norm", self._one(f"quantize_{kind}", tokens, self._rows_params(x, 0, matrix))
        yield from self._product(group, matrix, tokens, add)

    def _norm(self, x: int, weight: int, matrix: DeviceMatrix, tokens: int) -> Launch:
        """Return the norm of x in the form that a matrix takes."""
        kind = self._multipliers[matrix.address].activation
        return self._one(f"norm_{kind}", tokens, self._rows_params(x, weight, matrix))

    def _rows_params(self, x: int, weight: int, matrix: DeviceMatrix) -> Rows:
        epsilon = self._model.config.epsilon
        return Rows(x, weight, self._at["activations"], self._at["scales"], epsilon, matrix.columns, self._rows)

    def _one(self, kernel: str, blocks: int, params: Embed | Rows) -> Launch:
        return self._device.prepare(self._module.kernel(kernel), blocks, ROW_THREADS, 0, params)

    def _product(
        self, group: Group, matrix: DeviceMatrix, tokens: int, finish: Finish, a: int | None = None
    ) -> Iterator[tuple[Group, Step]]:
        given = Activations(self._at["activations"] if a is None else a, self._at["scales"], self._rows, tokens)
        for launch in self._multipliers[matrix.address].launches(matrix, given, finish, self._at["partial"]):
            yield group, launch

    def _attend(self, cache: CacheParams, position: int, slot: int, tokens: int) -> Launch:
        config, rows = self._model.config, FLASH_ROWS[self._flash_name]
        group = config.heads // config.kv_heads
        tile = max(1, rows // group)
        params = Flash(self._at["query"], cache, position, slot, self._at["mixed"], tokens, tile, config.heads)
        grid = (ceil_div(tokens, tile), config.kv_heads, ceil_div(group, rows))
        return self._device.prepare(self._flash.kernel(self._flash_name), grid, FLASH_THREADS, 0, params)

    def _build(self, source: str, kind: str | None) -> Module:
        weight = {} if kind is None else {"WEIGHT": f"WEIGHT_{kind}"}
        return build(self._device, source, {**self._defines, **weight})

    def _multiplier(self, kind: str, precise: bool, library: Backend | None = None) -> Multiplier:
        """Return the way of multiplying weights of a kind: the one place where backends are chosen."""
        activation: Activation = "f32"
        if library is not None and not precise and kind in TENSOR_CORES:
            from .cublaslt import LibraryMultiplier

            return LibraryMultiplier(library, kind, self._module)
        if not precise:
            activation = TENSOR_CORES.get(kind, "f32")
        if activation == "bf16" and self._device.kind != "emulated" and self._device.capability < BF16_CAPABILITY:
            activation = "f32"
        return TileMultiplier(self._device, kind, activation, self._defines, self._module)

    def _check_count(self, count: int) -> int:
        if not 1 <= count <= self.max_tokens:
            msg = (
                f"custom_cuda: expected 1 to {self.max_tokens} tokens at once, came {count}; "
                "pass -o custom_cuda.prefill_chunk=N for more"
            )
            raise EngineError(msg)
        return count


def bucket(tokens: int, most: int) -> int:
    """Return the number of tokens that is computed for so many: the rest is left empty."""
    return min(round_up(tokens, 16 if tokens <= 64 else 64), most)


def buckets(most: int) -> list[int]:
    """Return all numbers that `bucket` gives."""
    return sorted({bucket(tokens, most) for tokens in range(1, most + 1)})


def _matrix(matrix: DeviceMatrix) -> Matrix:
    return Matrix(matrix.address, matrix.rows, matrix.columns)


def _matrices(layer: object) -> list[DeviceMatrix]:
    """Return a layer's matrices."""
    return [getattr(layer, name) for name in ("qkv", "output", "gate_up", "down")]
