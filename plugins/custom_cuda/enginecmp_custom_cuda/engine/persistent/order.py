"""Run a schedule on paper: does it end, and is everything that multiprocessors share put in order?

For several tokens every row of every multiprocessor gets a vector clock (Mattern 1989), which finds waits that are
never met, and reads and writes of the same memory that nothing puts in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .faults import Fault
from .schedule import NO_COUNTER, Counter, Kind, Row, Schedule, counter_name

TOKENS = 3
"""Run on paper: the second follows a first, the third follows one that followed."""

NEEDS: dict[int, tuple[Counter, int]] = {
    Kind.QKV: (Counter.RESIDUAL, -1),
    Kind.ATTENTION: (Counter.QKV, 0),
    Kind.OUTPUT: (Counter.ATTENTION, 0),
    Kind.GATE_UP: (Counter.OUTPUT, 0),
    Kind.DOWN: (Counter.HIDDEN, 0),
    Kind.HEAD: (Counter.RESIDUAL, -1),
    Kind.NEXT: (Counter.BEST, 0),
}
"""What a step waits for: the counter, and of which layer, counted from its own."""


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


def check_order(schedule: Schedule) -> Iterator[Fault]:
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
    # What a row waits for in the first token; a token later, everything is `apart` epochs later.
    needs = [[list(_awaited(schedule, 0, row)) for row in plan] for plan in plans]
    apart = schedule.shape.layers + 1
    moved = True
    while moved:
        moved = False
        for sm, plan in enumerate(plans):
            while at[sm] < TOKENS * len(plan):
                token, index = divmod(at[sm], len(plan))
                row = plan[index]
                needed = [(counter, epoch + token * apart) for counter, epoch in needs[sm][index]]
                if any(len(arrived[key]) < expected[key] for key in needed):
                    break
                for key in needed:
                    if key not in joined:
                        joined[key] = np.max([paper.clocks[node] for node in arrived[key]], axis=0)
                    now[sm] = np.maximum(now[sm], joined[key])
                at[sm] += 1
                now[sm][sm] = at[sm]
                node = (sm, at[sm])
                paper.clocks[node] = now[sm].copy()
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
    if row.waits:
        _, back = NEEDS[row.kind]
        yield row.wait, _epoch(schedule, token, row.layer + back)


def _touch(schedule: Schedule, paper: _Paper, token: int, row: Row, node: tuple[int, int]) -> None:
    """Note what a row reads and writes. Memory is told apart by name, its contents by growing versions."""
    step = _epoch(schedule, token, row.layer)  # a version of what is made once a layer
    stream = 2 * step  # of the residual stream, made twice a layer, and once before the first
    match row.kind:
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
            paper.writes["hidden", step].append(node)
        case Kind.DOWN:
            paper.reads["hidden", step].append(node)
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
