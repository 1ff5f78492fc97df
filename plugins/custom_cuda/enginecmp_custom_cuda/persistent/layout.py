"""What the resident kernel keeps in a block's shared memory, and where: the ring of weights gets what is left.

`kernels/persistent.cuh` computes nothing of this: it takes the offsets as parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..weights.kinds import BLOCK
from ..weights.packing import CHUNK_COLUMNS, TILE_ROWS, tile_bytes

CONSUMER_WARPS = 16
"""Warps that multiply: one for each row of a tile."""
THREADS = 32 * (CONSUMER_WARPS + 1)
"""Of a block: the consumers and the warp that fetches weights."""
ROW_BYTES = 32
"""Of one row of the schedule."""
LAYER_BYTES = 64
"""Of one layer's addresses."""
SCRATCH_BYTES = 512
"""For sums and largest values across warps."""
BARRIER_BYTES = 16
"""Of a slot: its barriers "full" and "empty"."""
MOST_SLOTS = 64
FEWEST_SLOTS = 2
"""Below, nothing would be on its way while a chunk is multiplied."""
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
        results: 16 float32 of each tile of a step.
        scratch: sums and largest values of the warps.
        ring: the first slot.
        slot_bytes: from one slot to the next.
        slots: number of them.
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
    """Return what the input of the widest matrix takes, or attention's merge across warps, whichever is more."""
    vector = shape.widest + shape.widest // BLOCK * 4 if shape.quantized_activations else shape.widest * 4
    group = shape.heads // shape.kv_heads
    # Of each warp and query head: D sums, the largest score, the sum of weights.
    return max(vector, CONSUMER_WARPS * group * (shape.head_dim + 2) * 4)


def lay_out(shape: Shape, most_rows: int, most_tiles: int, shared_bytes: int, slots: int | None = None) -> Layout:
    """Return where everything lies; the ring has as many slots as fit.

    Args:
        shape: of the model.
        most_rows: of the schedule on any multiprocessor.
        most_tiles: of any step whose results are kept.
        shared_bytes: that a block may have.
        slots: of the ring; None: all that fit, at most 64. A result may have fewer than `FEWEST_SLOTS`, or none:
            then the model does not fit.
    """
    sizes = {
        "rows": most_rows * ROW_BYTES,
        "layers": shape.layers * LAYER_BYTES,
        "barriers": MOST_SLOTS * BARRIER_BYTES,
        "activation": activation_bytes(shape),
        "results": most_tiles * TILE_ROWS * 4,
        "scratch": SCRATCH_BYTES,
    }
    starts, end = {}, 0
    for name, size in sizes.items():
        starts[name] = end
        end = _round_up(end + size)
    slot_bytes = _round_up(chunk_bytes(shape.widest, shape.kind))
    if slots is None:
        slots = max(0, min(MOST_SLOTS, (shared_bytes - end) // slot_bytes))
    return Layout(**starts, ring=end, slot_bytes=slot_bytes, slots=slots, total=end + slots * slot_bytes)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
