"""Who computes what, in which order, and who waits for whom: the plan that the persistent kernel follows.

A token is a list of steps. For each multiprocessor the plan has a row for every step in which it has work: a range of
tiles of the step's matrix (or of attention's items), the counter it waits for with its target, and the counter
that it adds one to when it is done. Ranges are contiguous, so what a multiprocessor reads of a matrix is one run of
memory. Every tile has one owner, which alone writes its rows: nothing is added in an order that could vary.

In a step the multiprocessors' shares differ by one tile at most, so that none is late; those that had more in earlier
steps get the smaller shares, so that bytes are even over the whole token: the ring of weights evens out the rest.

Counters only grow while a kernel runs. A wait's target counts from the beginning of a token: token t of a launch waits
for `t * per_token[counter] + target`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ...weights.packing import CHUNK_COLUMNS, TILE_ROWS, tile_bytes
from .layout import Layout, Shape, lay_out

Ints = NDArray[np.int32]


class Kind(IntEnum):
    """Of a step."""

    QKV = 0
    ATTENTION = 1
    OUTPUT = 2
    GATE_UP = 3
    DOWN = 4
    HEAD = 5
    NEXT = 6


class Counter(IntEnum):
    """Each is alone in a line of 128 bytes, and counts the multiprocessors that are done with ..."""

    RESIDUAL = 0  # down: the residual stream is whole
    QKV = 1
    ATTENTION = 2
    OUTPUT = 3  # output: the residual stream is whole
    HIDDEN = 4  # gate_up
    BEST = 5  # the head


COUNTERS = 6
NO_COUNTER = 255
WORDS = 5
"""Of a row: code, layer, first, count, the target of its wait. The code is kind | waits << 4 | counter waited for << 8
| counter signalled << 16."""
MOST_SPLITS = 16
SPLIT_TOKENS = 128
"""Positions that a block of attention takes in one round."""
MATRICES = (Kind.QKV, Kind.OUTPUT, Kind.GATE_UP, Kind.DOWN, Kind.HEAD)


@dataclass(frozen=True)
class Row:
    """One row of a multiprocessor's plan, unpacked; see `WORDS`."""

    kind: int
    layer: int
    first: int
    count: int
    wait: int
    target: int
    signal: int

    def pack(self) -> list[int]:
        """Return the row's words."""
        code = self.kind | self.waits << 4 | self.wait << 8 | self.signal << 16
        return [code, self.layer, self.first, self.count, self.target]

    @property
    def waits(self) -> bool:
        """Whether it waits for a counter."""
        return self.wait != NO_COUNTER

    @classmethod
    def unpack(cls, words: Sequence[int]) -> Row:
        """Return what the words of a row say."""
        code, layer, first, count, target = words
        return cls(code & 15, layer, first, count, code >> 8 & 255, target, code >> 16 & 255)


@dataclass(frozen=True)
class Schedule:
    """A plan for one model on one device.

    Attributes:
        shape: of the model.
        multiprocessors: that take part: the blocks of the launch.
        shared_bytes: that a block may have.
        splits: of the positions in attention; its items are (kv head, tile of its query heads, split), split fastest.
        offsets: of each multiprocessor's first row, and the end, shape (multiprocessors + 1,).
        rows: int32, shape (rows, WORDS).
        per_token: by how much each counter grows in a token, shape (COUNTERS,).
        layout: of shared memory.
        bases: device addresses of the packed matrices, int64, shape (layers, 4): qkv, output, gate_up, down.
        head: device address of the packed head.
    """

    shape: Shape
    multiprocessors: int
    shared_bytes: int
    splits: int
    offsets: Ints
    rows: Ints
    per_token: Ints
    layout: Layout
    bases: NDArray[np.int64]
    head: int

    @cached_property
    def plans(self) -> list[list[Row]]:
        """Every multiprocessor's rows."""
        rows = [Row.unpack(words) for words in self.rows.tolist()]
        ends = self.offsets.tolist()
        return [rows[first:end] for first, end in pairwise(ends)]

    def plan(self, multiprocessor: int) -> list[Row]:
        """Return the rows of one multiprocessor."""
        return self.plans[multiprocessor]


def columns(shape: Shape, kind: int) -> int:
    """Return the columns of a step's matrix."""
    return {Kind.OUTPUT: shape.attended, Kind.DOWN: shape.inner}.get(Kind(kind), shape.hidden)


def tiles(shape: Shape, kind: int) -> int:
    """Return the tiles of a step's matrix."""
    rows = {
        Kind.QKV: shape.qkv_rows,
        Kind.OUTPUT: shape.hidden,
        Kind.GATE_UP: 2 * shape.inner,
        Kind.DOWN: shape.hidden,
        Kind.HEAD: shape.vocabulary,
    }[Kind(kind)]
    return -(-rows // TILE_ROWS)


def default_splits(shape: Shape, multiprocessors: int, context_tokens: int) -> int:
    """Return into how many splits attention cuts the positions.

    At most one item for each multiprocessor, and at least the positions that a block takes at once: every split that
    is not empty is merged again by every multiprocessor.
    """
    return max(1, min(MOST_SPLITS, multiprocessors // shape.items, -(-context_tokens // SPLIT_TOKENS)))


def generate(
    shape: Shape,
    multiprocessors: int,
    shared_bytes: int,
    bases: NDArray[np.int64],
    head: int,
    *,
    splits: int = 1,
    slots: int | None = None,
) -> Schedule:
    """Return the plan for a model on a device.

    Args:
        shape: of the model.
        multiprocessors: of the device; fewer take part where a layer has fewer tiles.
        shared_bytes: that a block may have.
        bases: device addresses, shape (layers, 4): qkv, output, gate_up, down.
        head: device address.
        splits: of the positions; see `default_splits`.
        slots: of the ring; None: as many as fit.

    Returns:
        A plan that `validate.check` finds nothing in, unless shared memory is too small for it.
    """
    # A multiprocessor without any work in a layer would never say how far it is.
    multiprocessors = min(multiprocessors, tiles(shape, Kind.GATE_UP))
    loads = np.zeros(multiprocessors, np.int64)
    plans: list[list[Row]] = [[] for _ in range(multiprocessors)]
    signalled = [0] * COUNTERS

    def add(kind: Kind, layer: int, wait: int, signal: int, shares: tuple[Ints, Ints]) -> None:
        """Append a step's rows. Multiprocessors without work in it do not wait, and do not signal."""
        target = signalled[wait] if wait != NO_COUNTER else 0
        for plan, first, count in zip(plans, *shares, strict=True):
            if count == 0:
                continue
            plan.append(Row(kind, layer, int(first), int(count), wait, target, signal))
            if signal != NO_COUNTER:
                signalled[signal] += 1

    for layer in range(shape.layers):
        before = Counter.RESIDUAL if layer else NO_COUNTER
        add(Kind.QKV, layer, before, Counter.QKV, _matrix_shares(shape, Kind.QKV, loads))
        add(Kind.ATTENTION, layer, Counter.QKV, Counter.ATTENTION, _shares(shape.items * splits, 0, loads))
        add(Kind.OUTPUT, layer, Counter.ATTENTION, Counter.OUTPUT, _matrix_shares(shape, Kind.OUTPUT, loads))
        add(Kind.GATE_UP, layer, Counter.OUTPUT, Counter.HIDDEN, _matrix_shares(shape, Kind.GATE_UP, loads))
        add(Kind.DOWN, layer, Counter.HIDDEN, Counter.RESIDUAL, _matrix_shares(shape, Kind.DOWN, loads))
    last = shape.layers
    add(Kind.HEAD, last, Counter.RESIDUAL, Counter.BEST, _matrix_shares(shape, Kind.HEAD, loads))
    everyone = np.ones(multiprocessors, np.int32)
    add(Kind.NEXT, last, Counter.BEST, NO_COUNTER, (0 * everyone, everyone))

    layout = lay_out(shape, max(map(len, plans)), shared_bytes, slots)
    return Schedule(
        shape,
        multiprocessors,
        shared_bytes,
        splits,
        np.cumsum([0, *map(len, plans)], dtype=np.int32),
        np.array([row.pack() for plan in plans for row in plan], np.int32),
        np.array(signalled, np.int32),
        layout,
        bases,
        head,
    )


def _matrix_shares(shape: Shape, kind: Kind, loads: NDArray[np.int64]) -> tuple[Ints, Ints]:
    return _shares(tiles(shape, kind), tile_bytes(columns(shape, kind), shape.kind), loads)


def _shares(items: int, item_bytes: int, loads: NDArray[np.int64]) -> tuple[Ints, Ints]:
    """Return (first, count) of each multiprocessor's items, and add their bytes to `loads`."""
    small, more = divmod(items, len(loads))
    counts = np.full(len(loads), small, np.int32)
    counts[np.argsort(loads, kind="stable")[:more]] += 1
    loads += counts * np.int64(item_bytes)
    return np.cumsum(counts, dtype=np.int32) - counts, counts


def copies(schedule: Schedule, multiprocessor: int) -> list[tuple[int, int]]:
    """Return what a multiprocessor fetches in a token, in order: (address, bytes) of each chunk.

    The kernel's producer derives the same from the rows: tiles in order, in a tile its chunks in order.
    """
    fetched = []
    bases = {(kind, layer): address for kind, layer, address in matrices(schedule)}
    for row in schedule.plan(multiprocessor):
        if row.kind not in MATRICES:
            continue
        width = columns(schedule.shape, row.kind)
        size = tile_bytes(width, schedule.shape.kind)
        base = bases[Kind(row.kind), row.layer]
        pieces = [(at, min(CHUNK_COLUMNS, width - at)) for at in range(0, width, CHUNK_COLUMNS)]
        fetched += [
            (base + tile * size + tile_bytes(at, schedule.shape.kind), tile_bytes(wide, schedule.shape.kind))
            for tile in range(row.first, row.first + row.count)
            for at, wide in pieces
        ]
    return fetched


def matrices(schedule: Schedule) -> Iterator[tuple[Kind, int, int]]:
    """Yield (kind, layer, device address) of every matrix; the head is behind the last layer."""
    for layer, addresses in enumerate(schedule.bases.tolist()):
        for kind, index in MATRIX_INDEX.items():
            yield kind, layer, addresses[index]
    yield Kind.HEAD, schedule.shape.layers, schedule.head


MATRIX_INDEX = {Kind.QKV: 0, Kind.OUTPUT: 1, Kind.GATE_UP: 2, Kind.DOWN: 3}
"""The column of `Schedule.bases`."""


def counter_name(counter: int) -> str:
    """Return a counter's name for people."""
    return Counter(counter).name
