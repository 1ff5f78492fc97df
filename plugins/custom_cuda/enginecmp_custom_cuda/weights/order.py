"""The order of rows in the fused matrices: neighbours are what one warp needs together.

An order is an array of indices: row r of the matrix on the device is row `order[r]` of the file's, so
`on_device = in_file[order]` and `in_file = on_device[inverse(order)]`. The same orders apply to biases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Order = NDArray[np.int64]


def rope_pairs(heads: int, head_dim: int, rope_dims: int, interleaved: bool) -> Order:
    """Return the order that makes the two rows of every rotated pair neighbours, head by head.

    Args:
        heads: heads that follow one another.
        head_dim: rows of a head.
        rope_dims: leading rows of a head that are rotated; the rest stays in place.
        interleaved: the file has them as neighbours already (`llama`); otherwise pairs are (i, i + rope_dims / 2),
            the layout of GPT-NeoX.

    Returns:
        Shape (heads * head_dim,).
    """
    head = np.arange(head_dim)
    if not interleaved:
        head[:rope_dims] = np.arange(rope_dims).reshape(2, -1).T.reshape(-1)
    return (np.arange(heads)[:, None] * head_dim + head).reshape(-1)


def qkv(heads: int, kv_heads: int, head_dim: int, rope_dims: int, interleaved: bool) -> Order:
    """Return the order of query, key and value heads one below the other; values are not rotated.

    Returns:
        Shape ((heads + 2 * kv_heads) * head_dim,).
    """
    rotated = rope_pairs(heads + kv_heads, head_dim, rope_dims, interleaved)
    return np.concatenate((rotated, np.arange(len(rotated), len(rotated) + kv_heads * head_dim)))


def gate_up(inner: int) -> Order:
    """Return the order that puts row i of gate at 2i and row i of up, `inner` rows below in the file, at 2i + 1.

    Returns:
        Shape (2 * inner,).
    """
    return np.arange(2 * inner).reshape(2, inner).T.reshape(-1)


def inverse(order: Order) -> Order:
    """Return the order that undoes another."""
    undone = np.empty_like(order)
    undone[order] = np.arange(len(order))
    return undone
