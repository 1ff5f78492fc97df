"""What the persistent kernel keeps in a block's shared memory, and where: the ring of weights gets what is left.

`kernels/persistent.cuh` computes nothing of this: it takes the offsets as parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...config import BLOCK
from ...weights.kinds import KINDS
from ...weights.packing import CHUNK_COLUMNS, TILE_ROWS, tile_bytes

CONSUMER_WARPS = 8
"""Warps that multiply: two teams of four, each warp with four rows of the team's tile."""
TEAMS = 2
THREADS = 32 * (CONSUMER_WARPS + 1)
"""Of a block: the consumers and the warp that fetches weights."""
ROW_BYTES = 20
"""Of one row of the schedule."""
LAYER_BYTES = 64
"""Of one layer's addresses."""
RESULT_TILES = 16
"""Tiles whose sums are kept before they are stored; a step with more of them stores several times."""
RESULT_BYTES = TEAMS * TILE_ROWS * 4
"""Of a tile's sums."""
SCRATCH_BYTES = 512
"""For sums and largest values across warps."""
BARRIER_BYTES = 16
"""Of a slot: its barriers "full" and "empty"."""
MOST_SLOTS = 64
FEWEST_SLOTS = TEAMS
"""Each team has a ring of its own; with one slot each, one chunk is on its way while the other is multiplied."""
ALIGNMENT = 128


@dataclass(frozen=True)
class Shape:
    """What a schedule has to know of a model.

    Attributes:
        layers: number of them.
        hidden: columns of the residual stream.
        heads: of queries.
        kv_heads: of keys and values.
        head_dim: elements of a head.
        inner: columns of down.
        vocabulary: rows of the head.
        kind: of every matrix, a name from `weights.kinds.KINDS`.
        quantized_activations: int8 activations with a scale for 32 (ACTIVATION_Q8); else float32.
        kv_bytes: of an element of the cache, 2 or 4.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    kind: str
    quantized_activations: bool
    kv_bytes: int = 2

    @property
    def item_heads(self) -> int:
        """Query heads of one item of attention: HEADS of `kernels/attention.cuh`."""
        vectors = self.head_dim * self.kv_bytes // 16
        lanes = min(32, vectors & -vectors)  # the largest power of two that divides them
        return 4 if vectors == lanes else 1

    @property
    def items(self) -> int:
        """Items of attention for each split of the positions."""
        return self.kv_heads * -(-(self.heads // self.kv_heads) // self.item_heads)

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused matrix of queries, keys and values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def attended(self) -> int:
        """Columns of the output matrix."""
        return self.heads * self.head_dim

    @property
    def widest(self) -> int:
        """Columns of the widest matrix."""
        return max(self.hidden, self.attended, self.inner)


@dataclass(frozen=True)
class Layout:
    """Byte offsets into a block's dynamic shared memory.

    Attributes:
        rows: this multiprocessor's rows of the schedule.
        layers: the layers' addresses.
        barriers: `slots` pairs of "full" and "empty".
        activation: the input of a matrix, or what attention merges.
        results: of some tiles, what the teams have summed up.
        scratch: sums and largest values of the warps.
        ring: the first slot.
        slot_bytes: from one slot to the next.
        slots: number of them; every team has the same share, next to each other.
        total: bytes of all.
    """

    rows: int
    layers: int
    barriers: int
    activation: int
    results: int
    scratch: int
    ring: int
    slot_bytes: int
    slots: int
    total: int

    def regions(self) -> tuple[tuple[str, int, int], ...]:
        """Return (name, first byte, end) of every region, in order."""
        starts = [(name, getattr(self, name)) for name in REGIONS]
        ends = [start for _, start in starts[1:]] + [self.total]
        return tuple((name, start, end) for (name, start), end in zip(starts, ends, strict=True))


REGIONS = ("rows", "layers", "barriers", "activation", "results", "scratch", "ring")


def chunk_bytes(columns: int, kind: str) -> int:
    """Return the bytes of the largest chunk of a matrix with these columns."""
    return tile_bytes(min(columns, CHUNK_COLUMNS), kind)


def activation_bytes(shape: Shape) -> int:
    """Return what the input of the widest matrix takes, or attention's merge across warps, whichever is more.

    `kernels/dot.cuh` pads an input to slabs: what the lanes of a warp read of a row at once, 16 bytes each (16 lanes
    of 4-bit weights, whose other 16 take other rows).
    """
    slab = 512 if KINDS[shape.kind].scaled else 32 * 16 * BLOCK // KINDS[shape.kind].payload_bytes
    padded = -(-shape.widest // slab) * slab
    vector = padded + shape.widest // BLOCK * 4 if shape.quantized_activations else padded * 4
    # Of each warp and query head: D sums, the largest score, the sum of weights.
    return max(vector, CONSUMER_WARPS * shape.item_heads * (shape.head_dim + 2) * 4)


def lay_out(shape: Shape, most_rows: int, shared_bytes: int, slots: int | None = None) -> Layout:
    """Return where everything lies; the ring has as many slots as fit.

    Args:
        shape: of the model.
        most_rows: of the schedule on any multiprocessor.
        shared_bytes: that a block may have.
        slots: of all teams; None: all that fit, at most 64. A result may have fewer than `FEWEST_SLOTS`, or none:
            then the model does not fit.
    """
    sizes = {
        "rows": most_rows * ROW_BYTES,
        "layers": shape.layers * LAYER_BYTES,
        "barriers": MOST_SLOTS * BARRIER_BYTES,
        "activation": activation_bytes(shape),
        "results": RESULT_TILES * RESULT_BYTES,
        "scratch": SCRATCH_BYTES,
    }
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end = _round_up(end + size)
    slot_bytes = _round_up(chunk_bytes(shape.widest, shape.kind))
    if slots is None:
        slots = max(0, min(MOST_SLOTS, (shared_bytes - end) // slot_bytes // TEAMS * TEAMS))
    return Layout(**starts, ring=end, slot_bytes=slot_bytes, slots=slots, total=end + slots * slot_bytes)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
