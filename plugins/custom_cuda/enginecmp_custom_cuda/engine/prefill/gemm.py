"""How the prefill multiplies: which kernel, which shape of tile, how many splits of the columns.

A `Multiplier` is one way of multiplying weights of one kind; the prefill knows nothing more of it than what it wants
its activations as and which launches a product takes. A library's GEMM would be one more, with the kernel `reduce`
(one split) as its finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from ...device import build
from ..memory.params import matrix_of
from .params import Finish, Gemm, Reduce

if TYPE_CHECKING:
    from ...device.device import Device
    from ...device.module import Launch, Module
    from ...weights.model import DeviceMatrix

Activation = Literal["f32", "f16", "bf16", "s8"]
"""What a product's activations are stored as; the endings of the kernels norm_* and quantize_*."""

ACTIVATION_BYTES: dict[Activation, int] = {"f32": 4, "f16": 2, "bf16": 2, "s8": 1}
TENSOR_CORES: dict[str, Activation] = {"Q8_0": "s8", "Q4_0": "s8", "F16": "f16", "BF16": "bf16"}
"""Kinds of weights that gemm_mma.cu multiplies, and what with."""

TENSOR_CORE_CAPABILITY = (8, 0)
"""Of a device whose prompts go through tensor cores; before, they are multiplied in float32."""
"""What mma with bf16 needs (PTX ISA, mma.sync); halves and int8 have one on every device that the engine takes."""

FINISH_ROWS = 8
REDUCE_THREADS = 128
MOST_SPLITS = 16
LEAST_STEPS = 4
"""Stages of columns that a split has at least: fewer are not worth filling the pipeline for."""


@dataclass(frozen=True)
class Shape:
    """One shape of tile of a GEMM kernel.

    Attributes:
        kernel: its name in the module.
        rows: of weights, of a block.
        tokens: of a block.
        threads: of a block.
        resident: blocks that a multiprocessor holds at once, about.
        columns: of a stage.
        shared_bytes: dynamic, of a block.
    """

    kernel: str
    rows: int
    tokens: int
    threads: int
    resident: int
    columns: int
    shared_bytes: int


@dataclass(frozen=True)
class Activations:
    """What a product's tokens are, on the device.

    Attributes:
        address: of [tokens][columns] in the multiplier's type.
        scales: of float32 [columns / 32][scale_stride], for "s8".
        scale_stride: at least the number of tokens, a multiple of 4.
        tokens: how many.
    """

    address: int
    scales: int
    scale_stride: int
    tokens: int


class Step(Protocol):
    """Something that is enqueued on the device's stream: a kernel's launch, or a library's."""

    def launch(self) -> None:
        """Run it after everything launched before, or record it while a graph is captured."""
        ...


class Multiplier(Protocol):
    """One way of multiplying weights of one kind."""

    activation: Activation

    def partial_bytes(self, rows: int, columns: int, tokens: int) -> int:
        """Return how much memory for sums of splits a product needs."""
        ...

    def launches(self, matrix: DeviceMatrix, given: Activations, finish: Finish, partial: int) -> Sequence[Step]:
        """Return the launches of one product, in order; `finish` gets its tokens and rows here."""
        ...

    def close(self) -> None:
        """Free what it keeps on the device; it may be closed before."""
        ...


def mma_shapes(kind: str) -> tuple[Shape, ...]:
    """Return the shapes of gemm_mma.cu for a kind, the smallest first; sizes as in gemm_stage.cuh."""

    def shape(name: str, rows: int, tokens: int, threads: int, resident: int, groups: int, stages: int) -> Shape:
        scaled = TENSOR_CORES[kind] == "s8"
        weight_bytes = 16 if kind == "Q4_0" else 32
        stage = groups * (rows * weight_bytes + tokens * 32 + (4 * (rows + tokens) if scaled else 0))
        return Shape(name, rows, tokens, threads, resident, groups * (32 if scaled else 16), stages * stage)

    return (
        shape("gemm_small", 64, 16, 128, 4, 4, 4),
        shape("gemm_medium", 64, 64, 128, 3, 4, 3),
        shape("gemm_large", 128, 128, 256, 2, 2, 3),
    )


FLOAT_SHAPES = (
    Shape("gemm_small", 64, 16, 128, 4, 32, 0),
    Shape("gemm_medium", 64, 64, 128, 4, 32, 0),
)
"""Of gemm_f32.cu."""


class TileMultiplier:
    """The project's own GEMM kernels: gemm_mma.cu, or gemm_f32.cu for float32 activations.

    Args:
        device: where.
        kind: of the weights.
        activation: "f32", or the kind's from `TENSOR_CORES`.
        defines: KV and HEAD_DIM.
        reduce: the module with the kernel `reduce`.
        splits: always so many, for tests; chosen by the number of tiles when None.
        shape: always this kernel, for tests; chosen by the number of tokens when None.
    """

    def __init__(
        self,
        device: Device,
        kind: str,
        activation: Activation,
        defines: dict[str, str],
        reduce: Module,
        splits: int | None = None,
        shape: str | None = None,
    ) -> None:
        self.activation = activation
        self._device = device
        self._shapes = FLOAT_SHAPES if activation == "f32" else mma_shapes(kind)
        if shape is not None:
            self._shapes = tuple(each for each in self._shapes if each.kernel == shape)
        source = "gemm_f32" if activation == "f32" else "gemm_mma"
        self._module = build(device, source, {**defines, "WEIGHT": f"WEIGHT_{kind}"})
        self._reduce = reduce.kernel("reduce")
        self._splits = splits

    def close(self) -> None:
        """Do nothing: kernels read the packed weights."""

    def plan(self, rows: int, columns: int, tokens: int) -> tuple[Shape, int]:
        """Return the shape of tile and the number of splits for a product."""
        shape = choose_shape(self._shapes, tokens)
        if self._splits is not None:
            return shape, self._splits
        return shape, choose_splits(shape, rows, columns, tokens, self._device.multiprocessors)

    def partial_bytes(self, rows: int, columns: int, tokens: int) -> int:
        """Return how much memory for sums of splits a product needs."""
        _, splits = self.plan(rows, columns, tokens)
        return 4 * splits * tokens * round_up(rows, FINISH_ROWS) if splits > 1 else 0

    def launches(self, matrix: DeviceMatrix, given: Activations, finish: Finish, partial: int) -> list[Launch]:
        """Return the launches of one product, in order."""
        shape, splits = self.plan(matrix.rows, matrix.columns, given.tokens)
        finish.tokens, finish.rows = given.tokens, matrix.rows
        params = Gemm(
            w=matrix_of(matrix),
            a=given.address,
            a_scale=given.scales,
            partial=partial,
            finish=finish,
            scale_stride=given.scale_stride,
            splits=splits,
        )
        grid = (ceil_div(given.tokens, shape.tokens), ceil_div(matrix.rows, shape.rows), splits)
        kernel = self._module.kernel(shape.kernel)
        launches = [self._device.prepare(kernel, grid, shape.threads, shape.shared_bytes, params)]
        if splits > 1:
            items = given.tokens * round_up(matrix.rows, FINISH_ROWS) // FINISH_ROWS
            reduce = Reduce(partial=partial, finish=finish, splits=splits)
            blocks = ceil_div(items, REDUCE_THREADS)
            launches.append(self._device.prepare(self._reduce, blocks, REDUCE_THREADS, 0, reduce))
        return launches


def choose_shape(shapes: Sequence[Shape], tokens: int) -> Shape:
    """Return the smallest shape that holds all tokens in one tile, else the largest."""
    return next((shape for shape in shapes if tokens <= shape.tokens), shapes[-1])


def choose_splits(shape: Shape, rows: int, columns: int, tokens: int, multiprocessors: int) -> int:
    """Return how many splits of the columns fill the device, when the tiles alone leave multiprocessors idle."""
    tiles = ceil_div(tokens, shape.tokens) * ceil_div(rows, shape.rows)
    wanted = shape.resident * multiprocessors // tiles
    return max(1, min(wanted, columns // shape.columns // LEAST_STEPS, MOST_SPLITS))


def ceil_div(count: int, size: int) -> int:
    """Return how many pieces of a size hold a count."""
    return -(-count // size)


def round_up(count: int, size: int) -> int:
    """Return the next multiple of a size."""
    return ceil_div(count, size) * size
