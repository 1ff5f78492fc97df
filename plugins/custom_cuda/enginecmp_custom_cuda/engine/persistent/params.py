"""The structs of kernels/persistent_params.h, as ctypes; a test holds the two together."""

from __future__ import annotations

import ctypes

from .schedule import COUNTERS, MATRIX_INDEX

POINTER = ctypes.c_uint64
INT = ctypes.c_int32
FLOAT = ctypes.c_float


class Layer(ctypes.Structure):
    """`PersistentLayer`."""

    _fields_ = (
        ("matrix", POINTER * len(MATRIX_INDEX)),
        ("attention_norm", POINTER),
        ("ffn_norm", POINTER),
        ("bias", POINTER),
        ("pages", POINTER),
    )


class Params(ctypes.Structure):
    """`PersistentParams`."""

    _fields_ = (
        ("rows", POINTER),
        ("offsets", POINTER),
        ("layers", POINTER),
        ("counters", POINTER),
        ("per_token", INT * COUNTERS),
        ("layers_at", INT),
        ("barriers_at", INT),
        ("activation_at", INT),
        ("results_at", INT),
        ("scratch_at", INT),
        ("ring_at", INT),
        ("slot_bytes", INT),
        ("slots", INT),
        ("result_tiles", INT),
        ("head", POINTER),
        ("embedding", POINTER),
        ("output_norm", POINTER),
        ("rope", POINTER),
        ("table", POINTER),
        ("x", POINTER),
        ("q", POINTER),
        ("partial", POINTER),
        ("partial_ml", POINTER),
        ("h", POINTER),
        ("logits", POINTER),
        ("best", POINTER),
        ("token", POINTER),
        ("position", POINTER),
        ("count", POINTER),
        ("ring", POINTER),
        ("status", POINTER),
        ("ring_slots", INT),
        ("ring_stride", INT),
        ("tokens", INT),
        ("layer_count", INT),
        ("hidden", INT),
        ("heads", INT),
        ("kv_heads", INT),
        ("inner", INT),
        ("vocabulary", INT),
        ("rope_dims", INT),
        ("splits", INT),
        ("patience", INT),
        ("epsilon", FLOAT),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {"PersistentLayer": Layer, "PersistentParams": Params}
"""By the name in the header."""
