"""The structs of kernels/params.h, as ctypes; a test holds sizes and offsets of the two together."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...weights.model import DeviceMatrix

POINTER = ctypes.c_uint64
INT = ctypes.c_int32
FLOAT = ctypes.c_float


class Matrix(ctypes.Structure):
    """`Matrix`."""

    _fields_ = (("tiles", POINTER), ("rows", INT), ("columns", INT))


def matrix_of(weights: DeviceMatrix) -> Matrix:
    """Return how kernels are told of packed weights."""
    return Matrix(weights.address, weights.rows, weights.columns)


class Cache(ctypes.Structure):
    """`Cache`: one layer's."""

    _fields_ = (("pages", POINTER), ("table", POINTER), ("table_stride", INT), ("kv_heads", INT))


class Qkv(ctypes.Structure):
    """`QkvParams`."""

    _fields_ = (
        ("w", Matrix),
        ("x", POINTER),
        ("norm", POINTER),
        ("bias", POINTER),
        ("rope", POINTER),
        ("position", POINTER),
        ("q", POINTER),
        ("cache", Cache),
        ("epsilon", FLOAT),
        ("heads", INT),
        ("rope_dims", INT),
        ("split_k", INT),
    )


class Attention(ctypes.Structure):
    """`AttentionParams`."""

    _fields_ = (
        ("q", POINTER),
        ("cache", Cache),
        ("position", POINTER),
        ("partial", POINTER),
        ("partial_ml", POINTER),
        ("heads", INT),
        ("splits", INT),
    )


class Output(ctypes.Structure):
    """`OutputParams`."""

    _fields_ = (
        ("w", Matrix),
        ("partial", POINTER),
        ("partial_ml", POINTER),
        ("position", POINTER),
        ("x", POINTER),
        ("heads", INT),
        ("splits", INT),
        ("split_k", INT),
    )


class GateUp(ctypes.Structure):
    """`GateUpParams`."""

    _fields_ = (
        ("w", Matrix),
        ("x", POINTER),
        ("norm", POINTER),
        ("position", POINTER),
        ("h", POINTER),
        ("epsilon", FLOAT),
        ("split_k", INT),
    )


class Down(ctypes.Structure):
    """`DownParams`."""

    _fields_ = (("w", Matrix), ("h", POINTER), ("position", POINTER), ("x", POINTER), ("split_k", INT))


class Head(ctypes.Structure):
    """`HeadParams`."""

    _fields_ = (
        ("w", Matrix),
        ("x", POINTER),
        ("norm", POINTER),
        ("position", POINTER),
        ("logits", POINTER),
        ("best", POINTER),
        ("epsilon", FLOAT),
        ("split_k", INT),
    )


class Begin(ctypes.Structure):
    """`BeginParams`."""

    _fields_ = (
        ("position", POINTER),
        ("active", POINTER),
        ("count", POINTER),
        ("best", POINTER),
        ("slot", INT),
        ("at", INT),
        ("token", INT),
    )


class Next(ctypes.Structure):
    """`NextParams`."""

    _fields_ = (
        ("table", Matrix),
        ("active", POINTER),
        ("best", POINTER),
        ("token", POINTER),
        ("position", POINTER),
        ("count", POINTER),
        ("ring", POINTER),
        ("x", POINTER),
        ("ring_slots", INT),
        ("ring_stride", INT),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "Matrix": Matrix,
    "Cache": Cache,
    "QkvParams": Qkv,
    "AttentionParams": Attention,
    "OutputParams": Output,
    "GateUpParams": GateUp,
    "DownParams": Down,
    "HeadParams": Head,
    "BeginParams": Begin,
    "NextParams": Next,
}
"""By the name in the header."""
