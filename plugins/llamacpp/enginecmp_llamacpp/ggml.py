"""The few functions of ggml that llama-cpp-python does not wrap: names of tensors, and a product of two matrices."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from enginecmp import EngineError, matrices

from .library import library_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F32 = 0  # GGML_TYPE_F32
_SPARE_BYTES = 1 << 20  # what ggml keeps beside the data of three tensors and a graph


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params` of ggml.h."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
# name → (library, result, arguments), as in ggml.h, ggml-backend.h and ggml-cpu.h
_FUNCTIONS: dict[str, tuple[str, Any, tuple[Any, ...]]] = {
    "ggml_get_name": ("ggml-base", ctypes.c_char_p, (_POINTER,)),
    "ggml_op_desc": ("ggml-base", ctypes.c_char_p, (_POINTER,)),
    "ggml_init": ("ggml-base", _POINTER, (_InitParams,)),
    "ggml_free": ("ggml-base", None, (_POINTER,)),
    "ggml_new_tensor_2d": ("ggml-base", _POINTER, (_POINTER, ctypes.c_int, _INT64, _INT64)),
    "ggml_get_data": ("ggml-base", _POINTER, (_POINTER,)),
    "ggml_mul_mat": ("ggml-base", _POINTER, (_POINTER, _POINTER, _POINTER)),
    "ggml_new_graph": ("ggml-base", _POINTER, (_POINTER,)),
    "ggml_build_forward_expand": ("ggml-base", None, (_POINTER, _POINTER)),
    "ggml_backend_graph_compute": ("ggml-base", ctypes.c_int, (_POINTER, _POINTER)),
    "ggml_backend_free": ("ggml-base", None, (_POINTER,)),
    "ggml_backend_cpu_init": ("ggml-cpu", _POINTER, ()),
    "ggml_backend_cpu_set_n_threads": ("ggml-cpu", None, (_POINTER, ctypes.c_int)),
}


@lru_cache(maxsize=1)
def functions() -> dict[str, Callable[..., Any]] | None:
    """Return ggml's functions by name, or None where this build does not let them be reached."""
    folder = library_folder() or Path(llama_cpp.__file__).parent / "lib"
    found: dict[str, Callable[..., Any]] = {}
    for name, (library, result, arguments) in _FUNCTIONS.items():
        path = next(iter(sorted(folder.glob(f"lib{library}.so*"))), None)
        function = getattr(ctypes.CDLL(str(path)), name, None) if path else None
        if function is None:
            return None
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found


def product(rows: int, inner: int, columns: int, seed: int, threads: int) -> Callable[[], NDArray[np.float32]] | None:
    """Return ggml_mul_mat of the seed's two float32 matrices on the CPU, or None where ggml cannot be reached.

    ggml keeps the right matrix as it keeps weights: one row for each output. That copy is made here, once.

    Args:
        rows: of the left matrix; tokens.
        inner: what is summed over.
        columns: of the right matrix; outputs.
        seed: of both.
        threads: that compute.

    Raises:
        EngineError: ggml has no memory for them.
    """
    call = functions()
    if call is None:
        return None
    left, right = matrices(rows, inner, columns, seed)
    weights = np.ascontiguousarray(right.T)  # (columns, inner)
    bytes_needed = left.nbytes + weights.nbytes + 4 * rows * columns + _SPARE_BYTES
    context = call["ggml_init"](_InitParams(bytes_needed, None, False))
    if not context:
        msg = f"llamacpp: expected {bytes_needed} bytes for a matrix product, ggml has none; free some memory"
        raise EngineError(msg)
    a = call["ggml_new_tensor_2d"](context, _F32, inner, columns)
    b = call["ggml_new_tensor_2d"](context, _F32, inner, rows)
    ctypes.memmove(call["ggml_get_data"](a), weights.ctypes.data, weights.nbytes)
    ctypes.memmove(call["ggml_get_data"](b), left.ctypes.data, left.nbytes)
    out = call["ggml_mul_mat"](context, a, b)
    graph = call["ggml_new_graph"](context)
    call["ggml_build_forward_expand"](graph, out)
    backend = call["ggml_backend_cpu_init"]()
    call["ggml_backend_cpu_set_n_threads"](backend, threads)
    pointer = ctypes.cast(call["ggml_get_data"](out), ctypes.POINTER(ctypes.c_float))
    result = np.ctypeslib.as_array(pointer, (rows, columns))
    compute = call["ggml_backend_graph_compute"]

    def multiply() -> NDArray[np.float32]:
        if status := compute(backend, graph):
            msg = f"llamacpp: ggml_backend_graph_compute failed with status {status}; report this"
            raise EngineError(msg)
        return result

    def free() -> None:
        call["ggml_backend_free"](backend)
        call["ggml_free"](context)

    weakref.finalize(multiply, free)
    return multiply
