"""How many blocks each kernel of a decode step gets, and what they share: the one place to change it.

A warp of a matrix kernel takes 4 rows at a time, and `split_k` of a block's 8 warps share the columns of its 4 rows
(split-K). More make smaller portions, so that a narrow matrix still keeps every multiprocessor busy; fewer make longer
streams and less to add up. Numbers of the kernels (rows of a warp, columns of a slab, shared memory) are those of
`kernels/dot.cuh` and `kernels/matvec.cuh`; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...config import BLOCK
from ...weights.kinds import KINDS

THREADS = 256
"""Of every block."""

WARPS = THREADS // 32
WARP_ROWS = 4
WAYS = (1, 2, 4, 8)

TOLERATED = 1.05
"""Times the least that a multiprocessor must read: for less than that no barrier is added to every round."""

WAITING_BYTES = 48 << 10
"""Of weights that a multiprocessor should have asked for at any time. Little's law: an H200's 4.8 TB/s for 800 ns are
29 KB of each of its 132, and a warp that multiplies has asked for only half of what it may."""

SPLIT_POSITIONS = 256
"""Positions that one block of attention takes before another joins it."""

MOST_SPLITS = 16

RESIDENT_ATTENTION = 2
"""Blocks of the attention kernel that its launch bounds keep room for on a multiprocessor."""


@dataclass(frozen=True)
class MatrixGrid:
    """A launch of a matrix kernel.

    Attributes:
        split_k: warps of a block that share rows.
        blocks: of the grid; each takes every `blocks`-th portion.
        shared_bytes: dynamic shared memory of a block: the activations.
    """

    split_k: int
    blocks: int
    shared_bytes: int


@dataclass(frozen=True)
class AttentionGrid:
    """A launch of the attention kernel.

    Attributes:
        splits: of the positions.
        grid: (splits, kv_heads, batch * tiles of query heads).
    """

    splits: int
    grid: tuple[int, int, int]


def slab_columns(kind: str) -> int:
    """Return the columns of one 16-byte load of each lane of a row: 32 lanes, for Q4_0 16."""
    elements = 16 * BLOCK // KINDS[kind].payload_bytes
    return elements * (16 if kind == "Q4_0" else 32)


def activation_bytes(columns: int, kind: str, quantized: bool, batch: int) -> int:
    """Return the shared memory of a block: whole slabs of int8 with scales, or of float32, of every sequence."""
    slab = slab_columns(kind)
    padded = -(-columns // slab) * slab
    return batch * (padded + columns // BLOCK * 4 if quantized else padded * 4)


def stages(kind: str, batch: int) -> int:
    """Return how many slabs of its rows a warp asks for at once."""
    return 4 if kind == "Q4_0" and batch < 8 else 2


def resident_blocks(batch: int, quantized: bool) -> int:
    """Return how many blocks of a matrix kernel its launch bounds keep room for on a multiprocessor."""
    if batch == 1:
        return 3
    return 1 if batch == 8 and not quantized else 2


def matrix_grid(
    rows: int, columns: int, kind: str, quantized: bool, batch: int, multiprocessors: int, split_k: int | None = None
) -> MatrixGrid:
    """Choose the launch of a matrix kernel.

    Split-K: the fewest with which the busiest multiprocessor has about as few rows to read as can be and keeps
    `WAITING_BYTES` of them, or all, on their part; where none does, those that come next to it. The blocks: one
    for each portion while all of them can be resident, because then all loads are on their way at once; otherwise as
    many a multiprocessor as leave the last round fullest, the fewest of equals, because every block makes the
    activations for itself.

    Args:
        rows: of the matrix.
        columns: of it.
        kind: of its weights.
        quantized: whether activations are int8.
        batch: sequences.
        multiprocessors: of the device.
        split_k: this many, for measurements.
    """
    slabs = -(-columns // slab_columns(kind))
    groups = -(-rows // WARP_ROWS)

    def busiest(split_k: int) -> int:
        portion = WARPS // split_k  # groups of a block's round
        return -(-groups // (portion * multiprocessors)) * portion

    resident = resident_blocks(batch, quantized)

    def waiting(split_k: int) -> float:
        """Return what a multiprocessor has on its part, as a share of what it should have."""
        portions = -(-groups * split_k // WARPS)
        blocks = min(resident, -(-portions // multiprocessors))
        rounds = -(-portions // (blocks * multiprocessors))
        slab = WARP_ROWS * KINDS[kind].row_bytes(slab_columns(kind))
        asked = blocks * WARPS * min(stages(kind, batch), -(-slabs // split_k) * rounds)
        return asked * slab / min(WAITING_BYTES, busiest(split_k) * slabs * slab)

    if split_k is None:
        # With more than the slabs some warps would have nothing; up to twice as many still spread the rows.
        possible = [each for each in WAYS if each < 2 * slabs]
        least = min(map(busiest, possible))
        balanced = [each for each in possible if busiest(each) <= TOLERATED * least]
        split_k = next((each for each in balanced if waiting(each) >= 1), max(balanced, key=waiting))
    portions = -(-groups * split_k // WARPS)
    if portions <= resident * multiprocessors:
        blocks = portions
    else:
        # Rounds times blocks is what a multiprocessor does; the last round may be half empty.
        each = min(range(min(2, resident), resident + 1), key=lambda n: (-(-portions // (n * multiprocessors)) * n, n))
        blocks = each * multiprocessors
    return MatrixGrid(split_k, blocks, activation_bytes(columns, kind, quantized, batch))


def attention_grid(
    heads: int, kv_heads: int, head_dim: int, element_bytes: int, batch: int, positions: int, multiprocessors: int
) -> AttentionGrid:
    """Choose the launch of the attention kernel, for contexts of up to `positions`.

    No more blocks than can be resident, two a multiprocessor: a few more would make another round of their own.
    """
    # kernels/attention.cuh: a block serves 4 query heads that share keys, 1 where a head is not a power of two long.
    power_of_two = head_dim & (head_dim - 1) == 0
    vectors = head_dim * element_bytes // 16
    tile = 4 if power_of_two and vectors <= 32 else 1
    tiles = -(-(heads // kv_heads) // tile)
    enough = RESIDENT_ATTENTION * multiprocessors // (batch * kv_heads * tiles)
    splits = max(1, min(positions // SPLIT_POSITIONS, MOST_SPLITS, enough))
    return AttentionGrid(splits, (splits, kv_heads, batch * tiles))
