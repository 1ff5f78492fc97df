"""Samples that contradict each other, their cell or the clock: left out before anything is computed, and named.

A line may be well-formed and still be impossible. Counted, one such line doubles a throughput or turns a verdict
around. What a copy repeats counts once; a launch that contradicts itself is left out as a whole, because nothing says
which of its lines are true; the other launches stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.files import in_run
from enginecmp.format.flags import Flag
from enginecmp_analysis.data.cells import is_possible
from enginecmp_analysis.data.columns import KEPT, MEASURE, MOST_NS, PHASES, Columns

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

MOST_TOKENS = 2**31
"""No request has so many tokens."""

NAMED = 3
"""Launches that are named for one reason; the others are counted."""


def without_contradictions(columns: Columns, path: Path, *, ours: bool = False) -> tuple[Columns, list[str]]:
    """Leave out what cannot be: copies of requests, and launches that contradict themselves.

    Args:
        columns: one row a line of the file.
        path: of the file, for the notes.
        ours: whether it holds requests that no importer wrote, so that its cells say what each of them was.

    Returns:
        The columns that are left, and one sentence for everything that was left out.
    """
    if not len(columns):
        return columns, []
    copies, conflicts = _repeated(columns)
    keep: Bools = ~copies
    notes: list[str] = []
    if copies.any():
        row = int(np.argmax(copies))
        count = int(copies.sum())
        notes.append(
            f"{in_run(path)}: {count} line{'' if count == 1 else 's'} repeated, counted once: line {row + 1} is "
            f"request {int(columns.index[row])} ({PHASES[int(columns.phase[row])]}) of launch "
            f"{columns.launches[int(columns.launch[row])]} a second time"
        )
    rules = _contradictions(columns, conflicts)
    if ours:
        rules = itertools.chain(rules, _impossible_loads(columns, keep))
    for reason, wrong in rules:
        lines: dict[int, int] = {}
        # What an earlier reason has left out is named already.
        for row in np.flatnonzero(wrong & keep).tolist():
            lines.setdefault(int(columns.launch[row]), row + 1)
        for code, line in list(lines.items())[:NAMED]:
            notes.append(f"{in_run(path)}, line {line}: {reason}: launch {columns.launches[code]} is left out")
        if len(lines) > NAMED:
            notes.append(f"{in_run(path)}: {len(lines) - NAMED} more launches are left out: {reason}")
        keep &= ~np.isin(columns.launch, list(lines))
    return (columns if keep.all() else only(columns, keep)), notes


def _impossible_loads(columns: Columns, keep: Bools) -> Iterator[tuple[str, Bools]]:
    """Yield what cannot be where every cell says what each of its requests was, and in which rows.

    Args:
        columns: of a run of requests that no importer wrote.
        keep: rows that nothing spoke against so far; it may change between two reasons.
    """
    measured = (columns.excluded == KEPT) & (columns.phase == MEASURE)
    prompts = np.array([cell.prompt_tokens for cell in columns.cells], dtype=np.int64)[columns.cell]
    alike = np.array([not cell.workload for cell in columns.cells], dtype=bool)[columns.cell]
    yield "a prompt of another length than its cell's", measured & alike & (columns.prompt_tokens != prompts)
    yield "a prompt longer than its workload's longest", measured & (columns.prompt_tokens > prompts)
    nameless = np.isnan(columns.metric("asked_request"))
    yield "a request that does not say which one of its workload it is", measured & ~alike & nameless
    yield "more requests at once than the cell has users", _crowded(columns, measured & keep)
    rows = np.flatnonzero(measured & keep & (columns.end_ns > columns.start_ns))
    _, first, number = np.unique(
        np.stack([columns.start_ns[rows], columns.end_ns[rows]]), axis=1, return_index=True, return_inverse=True
    )
    copied = np.zeros(len(columns), dtype=bool)
    copied[rows] = columns.launch[rows] != columns.launch[rows[first[number.ravel()]]]
    yield "a request with the stamps of one in another launch", copied


def _crowded(columns: Columns, rows: Bools) -> Bools:
    """Return (N,) which requests of closed loops began while all users of their cell waited for others."""
    wrong = np.zeros(len(columns), dtype=bool)
    closed = np.array([not cell.arrival and cell.concurrency > 0 for cell in columns.cells], dtype=bool)
    found = np.flatnonzero(rows & closed[columns.cell])
    places = columns.launch[found] * len(columns.cells) + columns.cell[found]
    order = np.argsort(places, kind="stable")
    for some in np.split(found[order], np.flatnonzero(np.diff(places[order])) + 1) if len(found) else ():
        began = some[np.argsort(columns.start_ns[some], kind="stable")]
        over = np.searchsorted(np.sort(columns.end_ns[some]), columns.start_ns[began], side="right")
        in_flight = np.arange(1, len(began) + 1) - over
        wrong[began[in_flight > columns.cells[int(columns.cell[some[0]])].concurrency]] = True
    return wrong


def flag_other_lengths(columns: Columns, path: Path) -> tuple[Columns, list[str]]:
    """Flag measured requests whose output is shorter or longer than their cell asks for, as the host does.

    Warm-up requests may be shorter: the prompt sent twice asks for one token.

    Args:
        columns: of a run whose cells say what every request had to generate.
        path: of the file, for the note.
    """
    # An impossible number is told and left out elsewhere; here it must only fit.
    wanted = np.array([min(cell.output_tokens, MOST_TOKENS) for cell in columns.cells], dtype=np.int64)[columns.cell]
    own = np.clip(columns.metric("asked_output_tokens"), 0, MOST_TOKENS)
    wanted = np.where(np.isnan(own), wanted, own).astype(np.int64)
    fine = columns.output_tokens == wanted
    fine |= (columns.metric("asked_may_end") == 1) & (columns.output_tokens > 0) & (columns.output_tokens < wanted)
    silent = (columns.excluded == KEPT) & (columns.phase == MEASURE) & ~fine
    if not silent.any():
        return columns, []
    reasons, excluded = list(columns.reasons), columns.excluded.copy()
    for flag, wrong in (
        (Flag.SHORT_OUTPUT, silent & (columns.output_tokens < wanted)),
        (Flag.LONG_OUTPUT, silent & (columns.output_tokens > wanted)),
    ):
        if wrong.any():
            if flag not in reasons:
                reasons.append(str(flag))
            excluded[wrong] = reasons.index(flag)
    row, count = int(np.argmax(silent)), int(silent.sum())
    note = (
        f"{in_run(path)}: {count} request{'' if count == 1 else 's'} flagged for another output length than the "
        f"cell's: line {row + 1} has {int(columns.output_tokens[row])} tokens, expected {int(wanted[row])}"
    )
    return replace(columns, reasons=tuple(reasons), excluded=excluded), [note]


def _contradictions(columns: Columns, conflicts: Bools) -> Iterator[tuple[str, Bools]]:
    """Yield what is impossible, and in which rows."""
    well = ~columns.failed()
    impossible = np.array([not is_possible(cell) for cell in columns.cells], dtype=bool)
    yield "a cell with a negative or impossible number", impossible[columns.cell]
    counts = np.stack([columns.block, columns.order, columns.index, columns.prompt_tokens, columns.output_tokens])
    yield "a negative block, order, index or token count", counts.min(axis=0) < 0
    yield f"a token count of {MOST_TOKENS} or more", counts[3:].max(axis=0) >= MOST_TOKENS
    far = _far(columns)
    yield "a stamp so far from zero that differences overflow", far
    stamps = np.diff(columns.offsets)
    yield "more token stamps than output tokens", well & (stamps > columns.output_tokens)
    # The clock rules hold for what was measured; a crash may end before its stamps do.
    backwards = _backwards(columns) & ~far & (columns.excluded == KEPT)
    yield "expected intended_ns <= start_ns <= token_ns (rising) <= end_ns", backwards
    yield "one launch in several blocks", _several(columns, columns.block)
    yield "one launch of several engines", _several(columns, columns.engine)
    yield "one request twice with different values", conflicts


def _far(columns: Columns) -> Bools:
    ends = np.stack([columns.intended_ns, columns.start_ns, columns.end_ns])
    far: Bools = (ends.max(axis=0) >= MOST_NS) | (ends.min(axis=0) <= -MOST_NS)
    tokens = np.flatnonzero((columns.token_ns >= MOST_NS) | (columns.token_ns <= -MOST_NS))
    far[np.searchsorted(columns.offsets, tokens, side="right") - 1] = True
    return far


def _backwards(columns: Columns) -> Bools:
    """Return (N,) which requests have stamps that would become negative latencies."""
    wrong = (columns.end_ns < columns.start_ns) | (columns.intended_ns > columns.start_ns)
    if len(columns.token_ns):
        some = np.diff(columns.offsets) > 0
        first, last = columns.offsets[:-1][some], columns.offsets[1:][some] - 1
        wrong[some] |= columns.token_ns[first] < columns.start_ns[some]
        wrong[some] |= columns.token_ns[last] > columns.end_ns[some]
        backwards = np.flatnonzero(columns.token_ns[1:] < columns.token_ns[:-1]) + 1
        owner = np.searchsorted(columns.offsets, backwards, side="right") - 1
        wrong[owner[columns.offsets[owner] != backwards]] = True
    return wrong


def _several(columns: Columns, values: Ints) -> Bools:
    """Return (N,) which requests belong to a launch that has more than one value."""
    low = np.full(len(columns.launches), np.iinfo(np.int64).max)
    high = np.full(len(columns.launches), np.iinfo(np.int64).min)
    np.minimum.at(low, columns.launch, values)
    np.maximum.at(high, columns.launch, values)
    several: Bools = (low != high)[columns.launch]
    return several


def _repeated(columns: Columns) -> tuple[Bools, Bools]:
    """Return (N,) which rows copy an earlier row, and which ones give an earlier request another value."""
    key = (columns.index, columns.phase, columns.cell, columns.launch)
    # Stable, so that of several copies the first line stays.
    order = np.lexsort(key)
    again = np.ones(len(columns) - 1, dtype=bool)
    for values in key:
        again &= values[order[1:]] == values[order[:-1]]
    copies, conflicts = np.zeros(len(columns), dtype=bool), np.zeros(len(columns), dtype=bool)
    numbers = list(_numbers(columns).values())
    first = 0
    for place in np.flatnonzero(again).tolist():
        if not again[place - 1] or place == 0:
            first = int(order[place])
        row = int(order[place + 1])
        same = all(values[row] == values[first] for values in numbers)
        if same and np.array_equal(_stamps(columns, row), _stamps(columns, first)):
            copies[row] = True
        elif columns.excluded[row] == columns.excluded[first] == KEPT:
            conflicts[row] = True
    return copies, conflicts


def _stamps(columns: Columns, row: int) -> Ints:
    return columns.token_ns[columns.offsets[row] : columns.offsets[row + 1]]


def _numbers(columns: Columns) -> dict[str, Ints]:
    """Return the columns that have one number a request."""
    found = {field.name: getattr(columns, field.name) for field in fields(columns)}
    return {
        name: values
        for name, values in found.items()
        if isinstance(values, np.ndarray) and name not in ("offsets", "token_ns")
    }


def only(columns: Columns, keep: Bools) -> Columns:
    """Return the rows that are kept, each with its stamps."""
    counts = np.diff(columns.offsets)
    kept: dict[str, Any] = {name: values[keep] for name, values in _numbers(columns).items()}
    return replace(
        columns,
        offsets=np.r_[0, np.cumsum(counts[keep])],
        token_ns=columns.token_ns[np.repeat(keep, counts)],
        metrics={name: values[keep] for name, values in columns.metrics.items()},
        **kept,
    )
