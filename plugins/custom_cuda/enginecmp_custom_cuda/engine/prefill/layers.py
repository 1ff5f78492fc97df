"""The launches of a prompt's tokens: which kernels run through a model's layers, on which memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Protocol

from ...device import build
from ..memory.pages import ELEMENT_BYTES, PAGE_TOKENS
from ..memory.params import Cache as CacheParams
from ..memory.params import matrix_of
from .gemm import (
    ACTIVATION_BYTES,
    TENSOR_CORE_CAPABILITY,
    TENSOR_CORES,
    Activation,
    Activations,
    Multiplier,
    Step,
    TileMultiplier,
    ceil_div,
    round_up,
)
from .params import Embed, Finish, FinishKind, Flash, Rows
from .split_attention import MOST_TOKENS, SplitAttention
from .tokens import buckets

if TYPE_CHECKING:
    from ...device.device import Device
    from ...device.module import Launch, Module
    from ...weights.model import DeviceMatrix, DeviceModel
    from .cublaslt import Backend

Group = Literal["embedding", "norm", "attention", "ffn", "lm_head"]
"""Components, by the names of `cmp_profile`."""

ROW_THREADS = 128
FLASH_THREADS = 128
FLASH_ROWS = {"flash_f16": 64, "flash_f32": 16}
"""Query rows of a block."""


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


class Layers:
    """Prepares launches; what they work on is its memory.

    Args:
        device: where.
        model: its weights there.
        cache: keys and values.
        precise: float32 activations for every kind of weights.
        rows: most tokens of a call, from `bucket`.
        library: multiplies the layers' matrices where activations are not float32; own kernels without one. The head
            stays with those, as it is multiplied for few tokens at a time.

    Attributes:
        hidden: address of the residual, float32 [rows][hidden].
        numbers: address of the call's tokens, int32 [3][tokens]: ids, positions, slots.
        nbytes: of the memory.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        cache: CacheGeometry,
        *,
        precise: bool,
        rows: int,
        library: Backend | None = None,
    ) -> None:
        self._device = device
        self._model = model
        self._cache = cache
        config = model.config
        self._rows = rows
        self._defines = {"KV": f"KV_{cache.kind.upper()}", "HEAD_DIM": str(config.head_dim)}
        self._module = self._build("prefill", model.embedding.kind)
        self._tensor_cores = not precise and device.capability >= TENSOR_CORE_CAPABILITY
        self._flash_name = "flash_f16" if cache.kind == "f16" and self._tensor_cores else "flash_f32"
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
        self._allocate([*inner, model.head])

    def steps(self, tokens: int, single: bool) -> Iterator[tuple[Group, Step]]:
        """Yield all launches of a call, in order.

        Args:
            tokens: of the call, from `bucket`.
            single: most tokens, at most `MOST_TOKENS`, are their sequence's only ones: attention is split by positions.
        """
        model, config, at = self._model, self._model.config, self._at
        ids, position, slot = (self.numbers + place * tokens * 4 for place in range(3))
        yield "embedding", self._one("embed", tokens, Embed(matrix_of(model.embedding), ids, position, self.hidden))
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

    def head(self, x: int, tokens: int, logits: int) -> Iterator[tuple[Group, Step]]:
        """Yield the launches that turn residuals into logits: the last norm, then the head.

        Args:
            x: address of float32 [tokens][hidden], such as `hidden` or rows copied from it.
            tokens: how many, at most `rows`.
            logits: address of float32 [tokens][vocabulary].
        """
        model = self._model
        yield "norm", self._norm(x, model.output_norm, model.head, tokens)
        yield from self._product("lm_head", model.head, tokens, Finish(kind=FinishKind.STORE, out=logits))

    def splits(self, tokens: int) -> int:
        """Return the most splits of the positions in attention, for so many tokens that are single."""
        return self._split.splits(tokens)

    def close(self) -> None:
        """Free the memory, and what a library keeps of the weights."""
        for multiplier in self._multipliers.values():
            multiplier.close()
        self._split.close()
        self._memory.free()

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
        sizes = {
            "hidden": rows * config.width * 4,
            "activations": rows * widest * most,
            "scales": widest // 32 * rows * 4,
            "query": rows * attention * 4,
            "mixed": rows * attention * 4,
            "inner": rows * config.feed_forward * 4,
            "partial": partial,
            "numbers": 3 * rows * 4,
        }
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name] = end
            end += round_up(size, 256)
        self._memory = self._device.allocate(end, "the prefill's buffers")
        self.nbytes = end + self._split.nbytes
        self._at = {name: self._memory.address + offset for name, offset in offsets.items()}
        self.hidden, self.numbers = self._at["hidden"], self._at["numbers"]

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
        if self._tensor_cores:
            activation = TENSOR_CORES.get(kind, "f32")
        return TileMultiplier(self._device, kind, activation, self._defines, self._module)


def _matrices(layer: object) -> list[DeviceMatrix]:
    """Return a layer's matrices."""
    return [getattr(layer, name) for name in ("qkv", "output", "gate_up", "down")]
