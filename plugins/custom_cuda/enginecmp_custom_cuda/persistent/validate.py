"""Prove a schedule before it runs: a plan with a hole would hang the device or compute something else.

`check` returns every fault that it finds, each with a name from `NAMES`. First the plan's arithmetic (ownership,
targets, memory); where that holds, the plan is run on paper for several tokens with a vector clock for each
multiprocessor (Mattern 1989), which finds waits that are never met, and reads and writes of the same memory that
nothing puts in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
from .schedule import (
    COUNTERS,
    MATRICES,
    NO_COUNTER,
    WORDS,
    Counter,
    Kind,
    Row,
    Schedule,
    copies,
    part_tiles,
    tiles,
)

NAMES = {
    "row": "a row of the plan is not one that the kernel understands",
    "lost_tile": "nobody owns a tile",
    "doubled_tile": "a tile has several owners",
    "foreign_tile": "a tile is not in the matrix",
    "wrong_target": "a wait's target is not the number of signals it is to follow",
    "unreachable_target": "a wait's target is more than its counter can reach",
    "deadlock": "waits depend on each other in a circle, or on nothing that comes",
    "mixed_epochs": "a counter can be raised by a later step before an earlier one is done",
    "race": "nothing puts a read and a write of the same memory in order",
    "ring": "the ring has too few slots, or its slots are too small for a chunk",
    "shared_memory": "regions of shared memory overlap, are too small, or do not fit",
    "misaligned": "a copy does not begin or end at a multiple of 16 bytes",
    "positions": "the tokens do not fit in the cache or in the rotation table",
}
MOST_COPY_BYTES = 2**20 - 1
"""That a barrier in shared memory can expect (PTX ISA, mbarrier)."""
TOKENS = 3
"""Run on paper: the second follows a first, the third follows one that followed."""


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a schedule: its name, from `NAMES`, and where."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} ({NAMES[self.name]}): {self.where}"


def check(schedule: Schedule) -> list[Fault]:
    """Return all faults of a schedule; none for one that may run."""
    faults = list(_rows(schedule))
    if faults:
        return faults  # nothing below could read such a plan
    faults += [*_ownership(schedule), *_targets(schedule), *_memory(schedule)]
    if not any(fault.name in {"unreachable_target", "wrong_target"} for fault in faults):
        faults += _order(schedule)
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
            good &= not row.targets or row.wait + len(row.targets) <= COUNTERS
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
    if not any(row.kind == Kind.HEAD for row in schedule.plan(0)):
        yield Fault("row", "multiprocessor 0 has no row HEAD: nobody would hand the host's wish to stop to the others")
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


_NEEDS = {
    Kind.QKV: (Counter.RESIDUAL, -1),
    Kind.ATTENTION: (Counter.QKV, 0),
    Kind.OUTPUT: (Counter.ATTENTION, 0),
    Kind.GATE_UP: (Counter.OUTPUT, 0),
    Kind.DOWN: (Counter.HIDDEN, 0),
    Kind.HEAD: (Counter.RESIDUAL, -1),
    Kind.NEXT: (Counter.BEST, 0),
}
"""What a step waits for: the first counter, and of which layer, counted from its own."""


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
            needed, back = _NEEDS[Kind(row.kind)]
            for part, target in enumerate(row.targets):
                where = f"multiprocessor {sm}, row {index} ({Kind(row.kind).name} of layer {row.layer})"
                where += f" waits for {counter_name(row.wait + part)} to be {target}"
                sums = groups.get(row.wait + part, {0: 0})
                if target > max(sums.values()):
                    yield Fault("unreachable_target", f"{where}, it has {max(sums.values())} signals in a token")
                elif row.wait != needed or target != sums.get(row.layer + back):
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
    for sm in range(schedule.multiprocessors):
        for address, size in copies(schedule, sm):
            if address % 16 or size % 16 or size > min(layout.slot_bytes, MOST_COPY_BYTES):
                name = "misaligned" if address % 16 or size % 16 else "ring"
                yield Fault(name, f"multiprocessor {sm} copies {size} bytes from {address:#x}")
                break


@dataclass
class _Paper:
    """The plan run on paper.

    Attributes:
        clocks: of each node (a row of a multiprocessor in a token), what it is known to follow: of each
            multiprocessor the number of its nodes. Shape (multiprocessors,).
        reads: of each version of a piece of memory, the nodes that read it.
        writes: the nodes that make it.
        reads_own: nodes that read only those rows of it whose next version they write themselves.
    """

    clocks: dict[tuple[int, int], NDArray[np.int32]] = field(default_factory=dict)
    reads: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    writes: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    reads_own: dict[tuple[str, int], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))


def _order(schedule: Schedule) -> Iterator[Fault]:
    """Run the plan on paper for some tokens; check that it ends, and that everything shared is in order."""
    plans = [schedule.plan(sm) for sm in range(schedule.multiprocessors)]
    size = len(plans)
    expected: dict[tuple[int, int], int] = defaultdict(int)  # (counter, epoch): signals
    for plan in plans:
        for row in plan:
            for token in range(TOKENS):
                expected[row.signal, _epoch(schedule, token, row.layer)] += 1
    arrived: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    joined: dict[tuple[int, int], NDArray[np.int32]] = {}
    paper = _Paper()
    now = [np.zeros(size, np.int32) for _ in plans]
    at = [0] * size  # rows done, over all tokens
    moved = True
    while moved:
        moved = False
        for sm, plan in enumerate(plans):
            while at[sm] < TOKENS * len(plan):
                token, index = divmod(at[sm], len(plan))
                row = plan[index]
                needed = list(_awaited(schedule, token, row))
                if any(len(arrived[key]) < expected[key] for key in needed):
                    break
                for key in needed:
                    if key not in joined:
                        joined[key] = np.max([paper.clocks[node] for node in arrived[key]], axis=0)
                    now[sm] = np.maximum(now[sm], joined[key])
                at[sm] += 1
                now[sm] = now[sm].copy()
                now[sm][sm] = at[sm]
                node = (sm, at[sm])
                paper.clocks[node] = now[sm]
                if row.signal != NO_COUNTER:
                    arrived[row.signal, _epoch(schedule, token, row.layer)].append(node)
                _touch(schedule, paper, token, row, node)
                moved = True
    for sm, plan in enumerate(plans):
        if at[sm] < TOKENS * len(plan):
            token, index = divmod(at[sm], len(plan))
            row = plan[index]
            where = f"multiprocessor {sm} never gets past row {index} ({Kind(row.kind).name} of layer {row.layer})"
            yield Fault("deadlock", f"{where} of token {token}")
    yield from _mixed(paper, arrived)
    yield from _races(paper)


def _epoch(schedule: Schedule, token: int, layer: int) -> int:
    return token * (schedule.shape.layers + 1) + layer


def _awaited(schedule: Schedule, token: int, row: Row) -> Iterator[tuple[int, int]]:
    """Yield (counter, epoch) of the signals that a row waits for: `_targets` has shown that these are the targets."""
    if row.targets:
        _, back = _NEEDS[Kind(row.kind)]
        for part in range(len(row.targets)):
            yield row.wait + part, _epoch(schedule, token, row.layer + back)


def _touch(schedule: Schedule, paper: _Paper, token: int, row: Row, node: tuple[int, int]) -> None:
    """Note what a row reads and writes. Memory is told apart by name, its contents by growing versions."""
    step = _epoch(schedule, token, row.layer)  # a version of what is made once a layer
    stream = 2 * step  # of the residual stream, made twice a layer, and once before the first
    match Kind(row.kind):
        case Kind.QKV:
            if row.layer:
                paper.reads["residual", stream - 1].append(node)
            else:  # all write the same: the token's embedding; each reads what it wrote itself
                paper.writes["residual", stream - 1].append(node)
            paper.writes["query", step].append(node)
            paper.writes["cache", step].append(node)
        case Kind.ATTENTION:
            paper.reads["query", step].append(node)
            paper.reads["cache", step].append(node)
            paper.writes["partial", step].append(node)
        case Kind.OUTPUT:
            paper.reads["partial", step].append(node)
            paper.reads_own["residual", stream - 1].append(node)
            paper.writes["residual", stream].append(node)
        case Kind.GATE_UP:
            paper.reads["residual", stream].append(node)
            edges = part_tiles(schedule.shape, schedule.parts)
            for part in range(schedule.parts):
                if row.first < edges[part + 1] and row.first + row.count > edges[part]:
                    paper.writes[f"hidden {part}", step].append(node)
        case Kind.DOWN:
            for part in range(schedule.parts):
                paper.reads[f"hidden {part}", step].append(node)
            paper.reads_own["residual", stream].append(node)
            paper.writes["residual", stream + 1].append(node)
        case Kind.HEAD:
            paper.reads["residual", stream - 1].append(node)
            paper.writes["best", token].append(node)
        case Kind.NEXT:
            paper.reads["best", token].append(node)


def _follows(paper: _Paper, later: list[tuple[int, int]], earlier: list[tuple[int, int]]) -> bool:
    """Return whether every one of `later` is known to follow every one of `earlier`, or is the same."""
    if not later or not earlier:
        return True
    clocks = np.stack([paper.clocks[node] for node in later])  # (later, multiprocessors)
    sms = [sm for sm, _ in earlier]
    return bool(np.all(clocks[:, sms] >= np.array([count for _, count in earlier])))


def _mixed(paper: _Paper, arrived: dict[tuple[int, int], list[tuple[int, int]]]) -> Iterator[Fault]:
    """Check that each counter's epochs are in order: else a target could be reached by signals of a later one."""
    last: dict[int, tuple[int, list[tuple[int, int]]]] = {}
    for (counter, epoch), nodes in sorted(arrived.items()):
        if counter in last and nodes and not _follows(paper, nodes, last[counter][1]):
            yield Fault("mixed_epochs", f"counter {counter_name(counter)}, epochs {last[counter][0]} and {epoch}")
        if nodes:
            last[counter] = (epoch, nodes)


def _races(paper: _Paper) -> Iterator[Fault]:
    """Check reads after their version's writes, and writes after all reads and writes of the version before."""
    before: dict[str, int] = {}
    for (name, version), writers in sorted(paper.writes.items()):
        read = paper.reads.get((name, version), [])
        if not _follows(paper, read + paper.reads_own.get((name, version), []), writers):
            yield Fault("race", f"{name}, version {version}: a read does not follow the writes")
        if name in before and name != "cache":  # a token's keys and values have a place of their own
            old = before[name]
            if not _follows(paper, writers, paper.reads.get((name, old), [])):
                yield Fault("race", f"{name}: a write of version {version} does not follow the reads of {old}")
            if not _follows(paper, writers, paper.writes[name, old]):
                yield Fault("race", f"{name}: a write of version {version} does not follow the writes of {old}")
        before[name] = version
    for name, version in {*paper.reads, *paper.reads_own} - set(paper.writes):
        yield Fault("race", f"{name}, version {version} is read and never written")


def counter_name(counter: int) -> str:
    """Return a counter's name for people."""
    if Counter.HIDDEN <= counter < Counter.BEST:
        return f"HIDDEN {counter - Counter.HIDDEN}"
    return Counter(counter).name
