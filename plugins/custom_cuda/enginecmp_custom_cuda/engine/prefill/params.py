"""The structs of kernels/prefill_params.h, as ctypes; a test holds sizes and offsets of the two together."""

from __future__ import annotations

import ctypes
from enum import IntEnum

from ..memory.params import Cache, Matrix

POINTER = ctypes.c_uint64
INT = ctypes.c_int32
FLOAT = ctypes.c_float


class FinishKind(IntEnum):
    """What becomes of a product; in the order of the header's enum."""

    STORE = 0
    ADD = 1
    SWIGLU = 2
    QKV = 3


class Embed(ctypes.Structure):
    """`EmbedParams`."""

    _fields_ = (("table", Matrix), ("ids", POINTER), ("position", POINTER), ("x", POINTER))


class Rows(ctypes.Structure):
    """`RowsParams`."""

    _fields_ = (
        ("x", POINTER),
        ("norm", POINTER),
        ("out", POINTER),
        ("scale", POINTER),
        ("epsilon", FLOAT),
        ("columns", INT),
        ("scale_stride", INT),
    )


class Finish(ctypes.Structure):
    """`Finish`."""

    _fields_ = (
        ("out", POINTER),
        ("bias", POINTER),
        ("rope", POINTER),
        ("position", POINTER),
        ("slot", POINTER),
        ("cache", Cache),
        ("heads", INT),
        ("rope_dims", INT),
        ("kind", INT),
        ("tokens", INT),
        ("rows", INT),
    )


class Gemm(ctypes.Structure):
    """`GemmParams`."""

    _fields_ = (
        ("w", Matrix),
        ("a", POINTER),
        ("a_scale", POINTER),
        ("partial", POINTER),
        ("finish", Finish),
        ("scale_stride", INT),
        ("splits", INT),
    )


class Reduce(ctypes.Structure):
    """`ReduceParams`."""

    _fields_ = (("partial", POINTER), ("finish", Finish), ("splits", INT))


class Flash(ctypes.Structure):
    """`FlashParams`."""

    _fields_ = (
        ("q", POINTER),
        ("cache", Cache),
        ("position", POINTER),
        ("slot", POINTER),
        ("out", POINTER),
        ("tokens", INT),
        ("tile_tokens", INT),
        ("heads", INT),
    )


class Split(ctypes.Structure):
    """`SplitParams`."""

    _fields_ = (
        ("q", POINTER),
        ("cache", Cache),
        ("position", POINTER),
        ("slot", POINTER),
        ("out", POINTER),
        ("partial", POINTER),
        ("partial_ml", POINTER),
        ("tokens", INT),
        ("heads", INT),
        ("splits", INT),
    )
