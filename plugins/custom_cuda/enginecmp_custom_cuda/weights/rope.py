"""The table of the rotary embedding, as the kernels read it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginecmp.models.decoder import RopeConfig


def rope_table(rope: RopeConfig, factors: NDArray[np.float32] | None, first: int, last: int) -> NDArray[np.float32]:
    """Return cosine and sine of every pair at the positions first..last - 1.

    Args:
        rope: base, dimensions and scaling.
        factors: the tensor that `rope.factors` names, shape (dimensions / 2,), or None.
        first: the first position.
        last: one past the last.

    Returns:
        Shape (last - first, dimensions / 2, 2), contiguous.
    """
    # Angles in float64: position * frequency loses 1e-4 rad at position 4096 in float32.
    exponents = np.arange(0, rope.dimensions, 2, dtype=np.float64) / rope.dimensions
    frequencies = rope.position_scale * rope.base**-exponents  # (dimensions / 2,)
    if factors is not None:
        frequencies = frequencies / factors.astype(np.float64)
    angles = np.outer(np.arange(first, last, dtype=np.float64), frequencies)  # (positions, dimensions / 2)
    table = np.empty((*angles.shape, 2), np.float32)
    table[..., 0] = np.cos(angles) * rope.magnitude
    table[..., 1] = np.sin(angles) * rope.magnitude
    return table
