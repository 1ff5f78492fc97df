"""cuBLASLt as the prefill's multiplier: weights once more as plain 16-bit rows, and the library's tensor-core GEMM.

Numbers: weights and activations are rounded to bfloat16 (F16 files keep half), sums are float32. The copy takes two
bytes a weight beside the packed one that decoding reads.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING

from enginecmp import EngineError

from ...device import build
from ..memory.params import Matrix, matrix_of
from .cublaslt_library import (
    COMPUTE_32F,
    DATA_TYPES,
    DESC_TRANSA,
    OP_T,
    PREFERENCE_MAX_WORKSPACE_BYTES,
    Heuristic,
    Library,
)
from .gemm import FINISH_ROWS, REDUCE_THREADS, Activation, Activations, ceil_div, round_up
from .params import Finish, FinishKind, Reduce

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ...device.device import Device
    from ...device.memory import Memory
    from ...device.module import Module
    from ...weights.model import DeviceMatrix
    from .gemm import Step

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA's documentation of cublasSetWorkspace recommends for Hopper; less elsewhere costs nothing but memory."""

EXPAND_THREADS = 128
EXPAND_COLUMNS = 16
ONE, ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)


class Expand(ctypes.Structure):
    """`ExpandParams`."""

    _fields_ = (("w", Matrix), ("out", ctypes.c_uint64))


class Backend:
    """cuBLASLt on one device: its handle and its workspace, shared by all products.

    Args:
        device: where.
        library: cuBLASLt.
    """

    def __init__(self, device: Device, library: Library) -> None:
        self.device = device
        self.library = library
        self.handle = library.create("cublasLtCreate")
        self.workspace = device.allocate(WORKSPACE_BYTES, "cuBLASLt's workspace")

    def close(self) -> None:
        """Free the workspace and the handle."""
        self.workspace.free()
        if self.handle:
            self.library.call("cublasLtDestroy", self.handle)
            self.handle = 0


class Product:
    """One prepared GEMM: out[t][row] = sum over columns of weights[row][column] a[t][column].

    In the library's words, whose matrices are column by column: D (rows, T) = A' (rows, columns) B (columns, T), with A
    the weights read as (columns, rows) and turned around, B the activations as they lie.

    Args:
        backend: cuBLASLt.
        weights: address of 16-bit [rows][columns].
        a: address of [tokens][columns] of the same type.
        out: address of float32 [tokens][stride].
        shape: (rows, columns, tokens).
        stride: of a token in `out`, at least rows.
        kind: "bf16" or "f16".
        add: add to what `out` holds.

    Attributes:
        shape: as given.

    Raises:
        EngineError: the library has no algorithm for it.
    """

    def __init__(
        self,
        backend: Backend,
        weights: int,
        a: int,
        out: int,
        shape: tuple[int, int, int],
        stride: int,
        kind: Activation,
        *,
        add: bool = False,
    ) -> None:
        rows, columns, tokens = self.shape = shape
        library = self._library = backend.library
        self._made: list[tuple[str, int]] = []
        operation = self._make("cublasLtMatmulDesc", COMPUTE_32F, DATA_TYPES["f32"])
        library.set("cublasLtMatmulDescSetAttribute", operation, DESC_TRANSA, ctypes.c_int32(OP_T))
        sixteen = DATA_TYPES[kind]
        layouts = [
            self._make("cublasLtMatrixLayout", *layout)
            for layout in (
                (sixteen, columns, rows, columns),
                (sixteen, columns, tokens, columns),
                (DATA_TYPES["f32"], rows, tokens, stride),
            )
        ]
        preference = self._make("cublasLtMatmulPreference")
        room = ctypes.c_uint64(WORKSPACE_BYTES)
        library.set("cublasLtMatmulPreferenceSetAttribute", preference, PREFERENCE_MAX_WORKSPACE_BYTES, room)
        self._best, found = Heuristic(), ctypes.c_int(0)
        left, right, result = layouts
        library.call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(backend.handle, operation, left, right, result, result, preference, 1),
            *(ctypes.byref(self._best), ctypes.byref(found)),
        )
        if found.value < 1 or self._best.state:
            msg = (
                f"custom_cuda: expected an algorithm of cuBLASLt for {rows} x {columns} x {tokens} in {kind}, got "
                f"{found.value} with status {self._best.state}; pass -o custom_cuda.gemm=own"
            )
            raise EngineError(msg)
        self._arguments = (
            *(backend.handle, operation, ctypes.byref(ONE), weights, left, a, right),
            *(ctypes.byref(ONE if add else ZERO), out, result, out, result),
            *(ctypes.byref(self._best.algo), backend.workspace.address, WORKSPACE_BYTES, int(backend.device.stream)),
        )
        weakref.finalize(self, _destroy, library, self._made)

    def launch(self) -> None:
        """Enqueue it on the device's stream, or record it while a graph is captured."""
        self._library.call("cublasLtMatmul", *self._arguments)

    def _make(self, what: str, *arguments: int) -> int:
        handle = self._library.create(f"{what}Create", *arguments)
        self._made.append((f"{what}Destroy", handle))
        return handle


def _destroy(library: Library, made: Iterable[tuple[str, int]]) -> None:
    for name, handle in made:
        library.call(name, handle)


class LibraryMultiplier:
    """Products by cuBLASLt. What is to be added is added by it, all else finished by the kernel `reduce` (one split).

    Args:
        backend: cuBLASLt.
        kind: of the weights; one that is multiplied in float32 has no place here.
        reduce: the module with the kernel `reduce`.
    """

    def __init__(self, backend: Backend, kind: str, reduce: Module) -> None:
        self.activation: Activation = "f16" if kind == "F16" else "bf16"
        self._backend = backend
        self._device = backend.device
        module = build(backend.device, "expand", {"WEIGHT": f"WEIGHT_{kind}"})
        self._expand = module.kernel(f"expand_{self.activation}")
        self._reduce = reduce.kernel("reduce")
        self._copies: dict[int, Memory] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the copies on the device."""
        return sum(copy.nbytes for copy in self._copies.values())

    def partial_bytes(self, rows: int, columns: int, tokens: int) -> int:
        """Return how much memory a product takes before it is finished."""
        return 4 * tokens * round_up(rows, FINISH_ROWS)

    def launches(self, matrix: DeviceMatrix, given: Activations, finish: Finish, partial: int) -> list[Step]:
        """Return the product and its finish; a matrix that comes for the first time is copied now."""
        finish.tokens, finish.rows = given.tokens, matrix.rows
        stride = round_up(matrix.rows, FINISH_ROWS)
        shape = (matrix.rows, matrix.columns, given.tokens)
        weights = self._copy(matrix)
        if finish.kind == FinishKind.ADD:
            out = int(finish.out)
            return [Product(self._backend, weights, given.address, out, shape, matrix.rows, self.activation, add=True)]
        product = Product(self._backend, weights, given.address, partial, shape, stride, self.activation)
        blocks = ceil_div(given.tokens * stride // FINISH_ROWS, REDUCE_THREADS)
        params = Reduce(partial=partial, finish=finish, splits=1)
        return [product, self._device.prepare(self._reduce, blocks, REDUCE_THREADS, 0, params)]

    def close(self) -> None:
        """Free the copies."""
        for copy in self._copies.values():
            copy.free()
        self._copies.clear()

    def _copy(self, matrix: DeviceMatrix) -> int:
        """Return the address of a matrix's 16-bit copy."""
        if matrix.address not in self._copies:
            weights = matrix.rows * matrix.columns
            copy = self._device.allocate(2 * weights, f"a {self.activation} copy of weights for cuBLASLt")
            params = Expand(w=matrix_of(matrix), out=copy.address)
            blocks = ceil_div(weights // EXPAND_COLUMNS, EXPAND_THREADS)
            self._device.launch(self._expand, blocks, EXPAND_THREADS, 0, params)
            self._copies[matrix.address] = copy
        return self._copies[matrix.address].address
