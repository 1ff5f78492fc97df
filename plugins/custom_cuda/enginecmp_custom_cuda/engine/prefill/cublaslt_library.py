"""The few functions of cuBLASLt that a product takes, through ctypes: types and numbers are those of cublasLt.h.

The library is the wheel nvidia-cublas, or any libcublasLt.so.13 that cuda.pathfinder finds. Nothing is loaded before
`open_library`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from enginecmp import EngineError

INSTALL = "pip install 'nvidia-cublas>=13,<14'"

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
OUT = ctypes.POINTER(ctypes.c_void_p)

# cublas_api.h, library_types.h, cublasLt.h
COMPUTE_32F = 68
OP_T = 1
DATA_TYPES = {"f32": 0, "f16": 2, "bf16": 14}
DESC_TRANSA = 3
PREFERENCE_MAX_WORKSPACE_BYTES = 1


class Heuristic(ctypes.Structure):
    """`cublasLtMatmulHeuristicResult_t`."""

    _fields_ = (
        ("algo", ctypes.c_uint64 * 8),
        ("workspace_bytes", SIZE),
        ("state", INT),
        ("waves", ctypes.c_float),
        ("reserved", INT * 4),
    )


_FUNCTIONS: dict[str, Sequence[Any]] = {
    "cublasLtCreate": (OUT,),
    "cublasLtDestroy": (POINTER,),
    "cublasLtMatmulDescCreate": (OUT, INT, INT),
    "cublasLtMatmulDescDestroy": (POINTER,),
    "cublasLtMatmulDescSetAttribute": (POINTER, INT, POINTER, SIZE),
    "cublasLtMatrixLayoutCreate": (OUT, INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutDestroy": (POINTER,),
    "cublasLtMatmulPreferenceCreate": (OUT,),
    "cublasLtMatmulPreferenceDestroy": (POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": (POINTER, INT, POINTER, SIZE),
    "cublasLtMatmulAlgoGetHeuristic": (
        *(POINTER,) * 7,
        INT,
        ctypes.POINTER(Heuristic),
        ctypes.POINTER(INT),
    ),
    "cublasLtMatmul": (
        *(POINTER, POINTER, POINTER),  # handle, operation, alpha
        *(POINTER, POINTER, POINTER, POINTER),  # A and its layout, B and its layout
        POINTER,  # beta
        *(POINTER, POINTER, POINTER, POINTER),  # C and its layout, D and its layout
        *(POINTER, POINTER, SIZE, POINTER),  # algorithm, workspace, its size, stream
    ),
}


class Library:
    """cuBLASLt with its functions typed; every call is checked.

    Args:
        path: of the shared library.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._library = ctypes.CDLL(path)
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.argtypes, function.restype = arguments, INT
        self._library.cublasLtGetVersion.restype = SIZE
        self._library.cublasLtGetStatusString.restype = ctypes.c_char_p
        self.version = int(self._library.cublasLtGetVersion())

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function.

        Raises:
            EngineError: it does not return CUBLAS_STATUS_SUCCESS.
        """
        if status := getattr(self._library, name)(*arguments):
            text = self._library.cublasLtGetStatusString(status)
            told = text.decode() if text else f"status {status}"
            msg = f"custom_cuda: expected {name} to succeed, got {told} ({self.path}); pass -o custom_cuda.gemm=own"
            raise EngineError(msg)

    def create(self, name: str, *arguments: Any) -> int:
        """Call a function that makes something and return its handle."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle.value or 0

    def set(self, name: str, handle: int, attribute: int, value: Any) -> None:
        """Set one attribute of a descriptor."""
        self.call(name, handle, attribute, ctypes.byref(value), ctypes.sizeof(value))


def open_library() -> Library:
    """Find and load cuBLASLt.

    Raises:
        EngineError: it is not installed, does not load, or lacks a function.
    """
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return Library(str(load_nvidia_dynamic_lib("cublasLt").abs_path))
    # A missing module or library, one that the loader refuses, one of another version.
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        got = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = f"custom_cuda: expected cuBLASLt for gemm=cublaslt, got: {got}; {INSTALL}"
        raise EngineError(msg) from error
