"""Prove a schedule before it runs: a plan with a hole would hang the device or compute something else.

`check` returns every fault that it finds, each with a name from `NAMES`. First the plan's arithmetic (ownership,
targets, memory); where that holds, it is run on paper (`order.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ...weights.packing import CHUNK_COLUMNS, tile_bytes
from .faults import Fault
from .layout import (
    ALIGNMENT,
    BARRIER_BYTES,
    FEWEST_SLOTS,
    LAYER_BYTES,
    MOST_SLOTS,
    RESULT_BYTES,
    RESULT_TILES,
    ROW_BYTES,
    SCRATCH_BYTES,
    TEAMS,
    activation_bytes,
    chunk_bytes,
)
from .order import NEEDS, check_order
from .schedule import COUNTERS, MATRICES, NO_COUNTER, WORDS, Kind, Schedule, columns, counter_name, matrices, tiles

MOST_COPY_BYTES = 2**20 - 1
"""That a barrier in shared memory can expect (PTX ISA, mbarrier)."""


def check(schedule: Schedule) -> list[Fault]:
    """Return all faults of a schedule; none for one that may run."""
    faults = list(_rows(schedule))
    if faults:
        return faults  # nothing below could read such a plan
    faults += [*_ownership(schedule), *_targets(schedule), *_memory(schedule)]
    if not any(fault.name in {"unreachable_target", "wrong_target"} for fault in faults):
        faults += check_order(schedule)
    return faults


def check_positions(position: int, tokens: int, capacity: int, rotations: int) -> list[Fault]:
    """Return a fault if tokens from a position on have no place.

    Args:
        position: of the first.
        tokens: of the launch.
        capacity: positions in the sequence's pages.
        rotations: positions in the rotation table.
    """
    end = position + tokens
    if position >= 0 and tokens >= 1 and end <= min(capacity, rotations):
        return []
    where = f"positions {position}..{end - 1}, the cache holds {capacity}, the rotation table {rotations}"
    return [Fault("positions", where)]


def _rows(schedule: Schedule) -> Iterator[Fault]:
    """Check that every row can be read, and the arrays' shapes."""
    offsets, rows = schedule.offsets, schedule.rows
    if rows.dtype != np.int32 or rows.shape != (int(offsets[-1]), WORDS) or np.any(np.diff(offsets) < 0):
        yield Fault("row", f"rows {rows.dtype} {rows.shape}, offsets end at {offsets[-1]}")
        return
    if len(offsets) != schedule.multiprocessors + 1 or schedule.per_token.shape != (COUNTERS,):
        yield Fault("row", f"{len(offsets)} offsets for {schedule.multiprocessors} multiprocessors")
        return
    for sm in range(schedule.multiprocessors):
        for index, row in enumerate(schedule.plan(sm)):
            last = row.kind in {Kind.HEAD, Kind.NEXT}
            good = row.kind < len(Kind) and row.first >= 0 and row.count >= 0
            good &= row.layer == schedule.shape.layers if last else 0 <= row.layer < schedule.shape.layers
            good &= row.signal < COUNTERS or row.signal == NO_COUNTER
            good &= row.wait < COUNTERS or row.wait == NO_COUNTER
            if not good:
                yield Fault("row", f"multiprocessor {sm}, row {index}: {row}")


def _ownership(schedule: Schedule) -> Iterator[Fault]:
    """Check that every tile and every item of attention has exactly one owner, and every multiprocessor its steps."""
    shape = schedule.shape
    owners: dict[tuple[int, int], NDArray[np.int32]] = {}
    for layer in range(shape.layers):
        for kind in MATRICES[:-1]:
            owners[kind, layer] = np.zeros(tiles(shape, kind), np.int32)
        owners[Kind.ATTENTION, layer] = np.zeros(shape.items * schedule.splits, np.int32)
    owners[Kind.HEAD, shape.layers] = np.zeros(tiles(shape, Kind.HEAD), np.int32)
    for sm in range(schedule.multiprocessors):
        plan = schedule.plan(sm)
        for index, row in enumerate(plan):
            if row.kind == Kind.NEXT:
                continue
            owned = owners[row.kind, row.layer]
            if row.first + row.count > len(owned):
                where = f"multiprocessor {sm}, row {index}, {row.first + row.count} of {len(owned)}"
                yield Fault("foreign_tile", where)
            owned[row.first : row.first + row.count] += 1
        if not plan or plan[-1].kind != Kind.NEXT or sum(row.kind == Kind.NEXT for row in plan) != 1:
            yield Fault("row", f"multiprocessor {sm} does not end a token by one row NEXT")
    for (step, layer), owned in owners.items():
        for name, wrong in (("lost_tile", owned == 0), ("doubled_tile", owned > 1)):
            if wrong.any():
                where = f"{Kind(step).name} of layer {layer}, tiles {np.flatnonzero(wrong)[:8].tolist()}"
                yield Fault(name, where)


def _groups(schedule: Schedule) -> dict[int, dict[int, int]]:
    """Return of each counter how many signals it has got by the end of each layer."""
    signals: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for sm in range(schedule.multiprocessors):
        for row in schedule.plan(sm):
            if row.signal != NO_COUNTER:
                signals[row.signal][row.layer] += 1
    return {
        counter: dict(zip(sorted(of), np.cumsum([of[layer] for layer in sorted(of)]).tolist(), strict=True))
        for counter, of in signals.items()
    }


def _targets(schedule: Schedule) -> Iterator[Fault]:
    """Check that every target is the number of signals of the step it is to follow."""
    groups = _groups(schedule)
    for counter in range(COUNTERS):
        total = max(groups.get(counter, {0: 0}).values())
        if schedule.per_token[counter] != total:
            where = f"counter {counter_name(counter)} grows by {total} in a token, not {schedule.per_token[counter]}"
            yield Fault("wrong_target", where)
    for sm in range(schedule.multiprocessors):
        for index, row in enumerate(schedule.plan(sm)):
            if not row.waits:
                continue
            needed, back = NEEDS[row.kind]
            sums = groups.get(row.wait, {0: 0})
            if row.wait == needed and row.target == sums.get(row.layer + back):
                continue
            where = f"multiprocessor {sm}, row {index} ({Kind(row.kind).name} of layer {row.layer})"
            where += f" waits for {counter_name(row.wait)} to be {row.target}"
            if row.target > max(sums.values()):
                yield Fault("unreachable_target", f"{where}, it has {max(sums.values())} signals in a token")
            else:
                yield Fault("wrong_target", f"{where}, its steps end at {sums}")


def _memory(schedule: Schedule) -> Iterator[Fault]:
    """Check shared memory, the ring and the copies."""
    shape, layout = schedule.shape, schedule.layout
    largest = chunk_bytes(shape.widest, shape.kind)
    if not FEWEST_SLOTS <= layout.slots <= MOST_SLOTS or layout.slots % TEAMS:
        yield Fault("ring", f"{layout.slots} slots, expected {FEWEST_SLOTS} to {MOST_SLOTS}, as many for each team")
    if layout.slot_bytes < largest or layout.slot_bytes % ALIGNMENT:
        yield Fault("ring", f"slots of {layout.slot_bytes} bytes for chunks of {largest}")
    if layout.total > schedule.shared_bytes:
        yield Fault("shared_memory", f"{layout.total} bytes, a block may have {schedule.shared_bytes}")
    plans = [schedule.plan(sm) for sm in range(schedule.multiprocessors)]
    least = {
        "rows": max(map(len, plans)) * ROW_BYTES,
        "layers": shape.layers * LAYER_BYTES,
        "barriers": MOST_SLOTS * BARRIER_BYTES,
        "activation": activation_bytes(shape),
        "scratch": SCRATCH_BYTES,
        "results": RESULT_TILES * RESULT_BYTES,
        "ring": layout.slots * layout.slot_bytes,
    }
    for name, first, end in layout.regions():
        if first % ALIGNMENT or end - first < least[name]:
            yield Fault("shared_memory", f"{name} has bytes {first}..{end}, it needs {least[name]}")
    for kind, layer, address in matrices(schedule):
        width = columns(shape, kind)
        # Every copy begins so many bytes behind the matrix's beginning, or a sum of them, and has as many.
        sizes = {tile_bytes(min(CHUNK_COLUMNS, width - at), shape.kind) for at in range(0, width, CHUNK_COLUMNS)}
        where = f"{kind.name} of layer {layer} is copied by {max(sizes)} bytes from {address:#x}"
        if any(number % 16 for number in (address, *sizes)):
            yield Fault("misaligned", where)
        if max(sizes) > min(layout.slot_bytes, MOST_COPY_BYTES):
            yield Fault("ring", where)
