"""Deltas on the wire: float32 as they are, float16, int8 with a scale for each matrix, or the largest values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Parts = dict[str, NDArray[np.generic]]
"""What is sent of a delta: named arrays of plain types."""

_INT8_LARGEST = 127


def compressed(matrices: Sequence[Floats], how: str, top_k_share: float) -> Parts:
    """Return what is sent of a delta.

    Args:
        matrices: of the adapter, each of any shape.
        how: "none", "float16", "int8" (symmetric, one float32 scale a matrix, rounded to nearest: off by half a scale
            at most) or "top_k" (the values of largest size, uint32 places beside them).
        top_k_share: of each matrix, at least one value.
    """
    parts: Parts = {}
    for number, matrix in enumerate(matrices):
        flat = np.ascontiguousarray(matrix, np.float32).ravel()
        if how == "float16":
            # An attacker's number may be larger than float16 can hold; infinity would be an attack of our own.
            largest = np.finfo(np.float16).max
            parts[f"{number}.values"] = np.clip(flat, -largest, largest).astype(np.float16)
        elif how == "int8":
            scale = np.float32(np.abs(flat).max() / _INT8_LARGEST) or np.float32(1)
            parts[f"{number}.values"] = np.rint(flat / scale).astype(np.int8)
            parts[f"{number}.scale"] = np.array([scale], np.float32)
        elif how == "top_k":
            kept = max(1, round(top_k_share * flat.size))
            places = np.sort(np.argpartition(np.abs(flat), flat.size - kept)[flat.size - kept :])
            parts[f"{number}.values"] = flat[places]
            parts[f"{number}.places"] = places.astype(np.uint32)
        else:
            parts[f"{number}.values"] = flat
    return parts


def decompressed(parts: Mapping[str, NDArray[np.generic]], how: str, shapes: Sequence[tuple[int, ...]]) -> list[Floats]:
    """Return a delta, float32 in the given shapes, of what was sent.

    Args:
        parts: from `compressed`.
        how: as there.
        shapes: of the adapter's matrices.

    Raises:
        ValueError: parts are missing, or do not fit the shapes.
    """
    found = []
    for number, shape in enumerate(shapes):
        size = int(np.prod(shape))
        try:
            values = parts[f"{number}.values"]
            if how == "int8":
                flat = values.astype(np.float32) * parts[f"{number}.scale"].astype(np.float32)
            elif how == "top_k":
                flat = np.zeros(size, np.float32)
                flat[parts[f"{number}.places"].astype(np.int64)] = values
            else:
                flat = values.astype(np.float32, copy=False)
        except (KeyError, IndexError) as error:
            msg = f"expected a delta compressed by {how}, matrix {number} of shape {shape}, got {sorted(parts)[:4]}"
            raise ValueError(msg) from error
        if flat.size != size:
            msg = f"expected {size} values of matrix {number}, got {flat.size}"
            raise ValueError(msg)
        found.append(flat.reshape(shape))
    return found
