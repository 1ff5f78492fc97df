"""Which tensors of a file become which matrix or vector on the device, decided before a byte is moved.

Every item knows its size and yields its bytes in pieces, so memory on the host stays bounded whatever the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from enginecmp import GGUFFile
from enginecmp.models.decoder import RopeConfig

from ..config import ROPE_TENSORS, ModelConfig, refuse
from . import order
from .kinds import KINDS
from .packing import PIECE_BYTES, Bytes, pack_pieces, packed_bytes
from .rope import rope_table

VECTOR_KINDS = ("F32", "F16")


class Item(Protocol):
    """Something that gets memory on the device."""

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""

    def pieces(self, file: GGUFFile) -> Iterator[tuple[int, Bytes]]:
        """Yield offset and bytes, in order; the bytes are overwritten when the next piece is asked for."""


@dataclass(frozen=True, eq=False)
class MatrixPlan:
    """One packed matrix.

    Attributes:
        sources: tensors of one kind, one below the other.
        rows: of all of them.
        columns: of each.
        kind: of each.
        order: of the rows on the device; None leaves them.
    """

    sources: tuple[str, ...]
    rows: int
    columns: int
    kind: str
    order: order.Order | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return packed_bytes(self.rows, self.columns, self.kind)

    def pieces(self, file: GGUFFile) -> Iterator[tuple[int, Bytes]]:
        """Yield the packed matrix."""
        parts = [file.raw(name) for name in self.sources]

        def take(first: int, last: int) -> Bytes:
            if self.order is None and len(parts) == 1:
                return parts[0][first:last]
            wanted = np.arange(first, last) if self.order is None else self.order[first:last]
            rows = np.empty((last - first, parts[0].shape[1]), np.uint8)
            start = 0
            for part in parts:
                here = (wanted >= start) & (wanted < start + len(part))
                rows[here] = part[wanted[here] - start]
                start += len(part)
            return rows

        return pack_pieces(take, self.kind, self.rows, self.columns)


@dataclass(frozen=True, eq=False)
class VectorPlan:
    """One float32 vector: a norm's weight, or biases one after the other.

    Attributes:
        sources: tensors with their lengths; a length without a name stands for zeros.
        order: on the device; None leaves it.
    """

    sources: tuple[tuple[str | None, int], ...]
    order: order.Order | None = None

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return 4 * sum(length for _, length in self.sources)

    def pieces(self, file: GGUFFile) -> Iterator[tuple[int, Bytes]]:
        """Yield the vector as one piece."""
        vector = np.concatenate(
            [np.zeros(length, np.float32) if name is None else file.float32(name) for name, length in self.sources]
        )
        yield 0, (vector if self.order is None else vector[self.order]).view(np.uint8)


@dataclass(frozen=True, eq=False)
class RopePlan:
    """The table of the rotary embedding, float32 [positions][dimensions / 2][cosine, sine]."""

    rope: RopeConfig
    positions: int

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.positions * self.rope.dimensions * 4

    def pieces(self, file: GGUFFile) -> Iterator[tuple[int, Bytes]]:
        """Yield the table."""
        factors = None if self.rope.factors is None else file.float32(self.rope.factors)
        row_bytes = self.rope.dimensions * 4
        # Float64 on the way takes a few times the table.
        step = max(1, PIECE_BYTES // 4 // row_bytes)
        for first in range(0, self.positions, step):
            table = rope_table(self.rope, factors, first, min(first + step, self.positions))
            yield first * row_bytes, table.reshape(-1).view(np.uint8)


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """What a layer consists of, in the order in which a step reads it."""

    attention_norm: VectorPlan
    qkv: MatrixPlan
    qkv_bias: VectorPlan | None
    output: MatrixPlan
    ffn_norm: VectorPlan
    gate_up: MatrixPlan
    down: MatrixPlan


@dataclass(frozen=True, eq=False)
class ModelPlan:
    """What a model consists of; a tied head is the embedding itself."""

    embedding: MatrixPlan
    layers: tuple[LayerPlan, ...]
    output_norm: VectorPlan
    head: MatrixPlan
    rope: RopePlan

    def weights(self) -> list[MatrixPlan | VectorPlan]:
        """Return every matrix and vector once, in the order in which a step reads them."""
        found: list[MatrixPlan | VectorPlan] = [self.embedding]
        for each in self.layers:
            found += [each.attention_norm, each.qkv, *([each.qkv_bias] if each.qkv_bias else [])]
            found += [each.output, each.ffn_norm, each.gate_up, each.down]
        return [*found, self.output_norm, *([] if self.head is self.embedding else [self.head])]

    def items(self) -> list[Item]:
        """Return everything that gets memory, once."""
        return [*self.weights(), self.rope]


def plan_model(file: GGUFFile, config: ModelConfig, context_tokens: int) -> ModelPlan:
    """Find every tensor's place.

    Args:
        file: the checked GGUF file.
        config: what its metadata says.
        context_tokens: positions of the rotary table.

    Raises:
        UnsupportedModel: tensors are missing, left over, of another shape than the metadata says, or of a kind or
            mixture that the kernels do not read.
    """
    tensors = _Tensors(file, config.architecture)
    width, kv_width = config.heads * config.head_dim, config.kv_heads * config.head_dim
    qkv_order = order.qkv(
        config.heads, config.kv_heads, config.head_dim, config.rope.dimensions, config.rope.interleaved
    )
    gate_up_order = order.gate_up(config.feed_forward)
    embedding = tensors.matrix([("token_embd", config.vocabulary)], config.width)
    layers = []
    for index in range(config.layers):
        block = f"blk.{index}"
        if f"{block}.attn_qkv.weight" in file.tensors:
            qkv = [(f"{block}.attn_qkv", width + 2 * kv_width)]
        else:
            qkv = [
                (f"{block}.attn_{name}", rows) for name, rows in zip("qkv", (width, kv_width, kv_width), strict=True)
            ]
        if config.architecture == "phi3":
            gate_up = [(f"{block}.ffn_up", 2 * config.feed_forward)]
        else:
            gate_up = [(f"{block}.ffn_gate", config.feed_forward), (f"{block}.ffn_up", config.feed_forward)]
        layers.append(
            LayerPlan(
                attention_norm=tensors.vector(f"{block}.attn_norm.weight", config.width),
                qkv=tensors.matrix(qkv, config.width, qkv_order),
                qkv_bias=tensors.biases(qkv, qkv_order),
                output=tensors.matrix([(f"{block}.attn_output", config.width)], width),
                ffn_norm=tensors.vector(f"{block}.ffn_norm.weight", config.width),
                gate_up=tensors.matrix(gate_up, config.width, gate_up_order),
                down=tensors.matrix([(f"{block}.ffn_down", config.width)], config.feed_forward),
            )
        )
    output_norm = tensors.vector("output_norm.weight", config.width)
    tied = "output.weight" not in file.tensors
    head = embedding if tied else tensors.matrix([("output", config.vocabulary)], config.width)
    if config.rope.factors is not None:
        tensors.vector(config.rope.factors, config.rope.dimensions // 2)
    tensors.refuse_others()
    return ModelPlan(embedding, tuple(layers), output_norm, head, RopePlan(config.rope, context_tokens))


class _Tensors:
    """A file's tensors, each held against what the metadata says, and what was not asked for."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._file = file
        self._architecture = architecture
        self._asked = set(ROPE_TENSORS[architecture])

    def matrix(
        self, parts: Sequence[tuple[str, int]], columns: int, row_order: order.Order | None = None
    ) -> MatrixPlan:
        """Plan a matrix of parts (name without suffix, rows)."""
        names = tuple(f"{name}.weight" for name, _ in parts)
        kinds = [self._kind(name, (rows, columns), tuple(KINDS)) for name, (_, rows) in zip(names, parts, strict=True)]
        if len(set(kinds)) > 1:
            got = ", ".join(f"{name} {kind}" for name, kind in zip(names, kinds, strict=True))
            refuse("expected one kind for matrices that are fused", got, "quantize the model to one kind")
        return MatrixPlan(names, sum(rows for _, rows in parts), columns, kinds[0], row_order)

    def vector(self, name: str, length: int) -> VectorPlan:
        """Plan a vector."""
        self._kind(name, (length,), VECTOR_KINDS)
        return VectorPlan(((name, length),))

    def biases(self, parts: Sequence[tuple[str, int]], row_order: order.Order) -> VectorPlan | None:
        """Plan the biases of a matrix's parts; None when no part has one."""
        sources = [(f"{name}.bias", rows) for name, rows in parts]
        present = [name in self._file.tensors for name, _ in sources]
        if not any(present):
            return None
        for (name, rows), there in zip(sources, present, strict=True):
            if there:
                self._kind(name, (rows,), VECTOR_KINDS)
        return VectorPlan(
            tuple((name if there else None, rows) for (name, rows), there in zip(sources, present, strict=True)),
            row_order,
        )

    def refuse_others(self) -> None:
        """Refuse tensors that nothing asked for: they would change what the model computes."""
        others = [name for name in self._file.tensors if name not in self._asked]
        if others:
            refuse(f"expected the tensors of a dense {self._architecture} model", f"also {', '.join(others[:3])}")

    def _kind(self, name: str, shape: tuple[int, ...], kinds: tuple[str, ...]) -> str:
        """Return a tensor's kind after holding its shape and kind against what is expected."""
        self._asked.add(name)
        tensor = self._file.tensors.get(name)
        if tensor is None:
            refuse(f"expected a tensor {name} in a dense {self._architecture} model", "none")
        if tensor.shape != shape:
            refuse(f"expected {name} of shape {shape} by the metadata", f"{tensor.shape}", "convert the model again")
        if tensor.type not in kinds:
            fix = f"quantize the model to one of {', '.join(kinds)}" if len(shape) > 1 else "convert the model again"
            refuse(f"expected {name} as one of {', '.join(kinds)}", tensor.type, fix)
        return tensor.type
