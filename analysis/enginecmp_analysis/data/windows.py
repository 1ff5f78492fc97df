"""The steady window of each launch: where it begins and ends, and what was done inside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import is_concurrent
from enginecmp_analysis.data.columns import KEPT, LOAD, MEASURE, Columns
from enginecmp_analysis.data.stamps import NS, request_times, request_values

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ROUNDS = 2
"""Requests for every one in flight that a window under full load must hold."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Every launch of one engine in one cell; all arrays (L,).

    Attributes:
        launch: code of the launch.
        block: number of its block.
        requests: requests that count.
        begin_ns: where the window begins.
        end_ns: where it ends.
        seconds: its length, less what does not count; NaN where the launch has no valid window.
        tokens: output tokens inside it.
        completed: requests served inside it; of one that lies in it in part, the share of its service.
        sent_per_second: rate at which requests were sent in it.
        full: whether it lies inside the time of full load, so that it holds parts of requests at both ends.
    """

    launch: Ints
    block: Ints
    requests: Ints
    begin_ns: Ints
    end_ns: Ints
    seconds: Floats
    tokens: Floats
    completed: Floats
    sent_per_second: Floats
    full: Bools


def windows(columns: Columns, rows: Ints, everyone: Ints, failed: Bools) -> Windows:
    """Return the steady windows of one engine in one cell.

    One request at a time: from the first start to the last end, idle time between requests included. The slot of a
    request that was left out, from its start to the next one's, is taken out of the window: its tokens do not
    count, so its time must not either.

    Several in flight: from the sending of the first measured request to the sending of the last one, while the
    load is full. What is in the window counts by its stamps, whoever began it: at the beginning tokens of warm-up
    requests still under way, at the end not those yet to come. No slot can be taken out: a request that failed costs
    its tokens, as it does a user, and a launch with a flagged request has no window. With fewer than two rounds, or
    without warm-up before it, the window is from the first start to the last end.

    Args:
        columns: the run.
        rows: requests that count, launch after launch, in the order of time.
        everyone: all requests of the same engine and cell, warm-up included.
        failed: (N,) which samples did not end well.
    """
    starts = launch_starts(columns.launch[rows])
    if is_concurrent(columns.cells[int(columns.cell[rows[0]])]):
        found = [_overlapping(columns, part, everyone, failed) for part in np.split(rows, starts[1:])]
        begin, end, spent, tokens, completed, sent, full = (np.array(part) for part in zip(*found, strict=True))
    else:
        begin = np.minimum.reduceat(columns.start_ns[rows], starts)
        end = np.maximum.reduceat(columns.end_ns[rows], starts)
        spent = (end - begin - _lost_ns(columns, rows, starts, everyone)) * NS
        tokens = np.add.reduceat(columns.output_tokens[rows], starts).astype(np.float64)
        completed = np.diff(np.r_[starts, len(rows)]).astype(np.float64)
        spent = np.where(spent > 0, spent, np.nan)
        sent, full = completed / spent, np.zeros(len(starts), dtype=bool)
    return Windows(
        launch=columns.launch[rows[starts]],
        block=columns.block[rows[starts]],
        requests=np.diff(np.r_[starts, len(rows)]),
        begin_ns=begin,
        end_ns=end,
        seconds=spent,
        tokens=tokens,
        completed=completed,
        sent_per_second=sent,
        full=full,
    )


@dataclass(frozen=True, slots=True)
class Place:
    """One engine in one cell of one run.

    Attributes:
        engine: label.
        cell: point of the grid.
        found: the steady windows of its launches.
        rows: requests that count, launch after launch, in the order of time.
        everyone: all requests, warm-up included.
        failed: (N,) which samples of the run did not end well.
    """

    engine: str
    cell: Cell
    found: Windows
    rows: Ints
    everyone: Ints
    failed: Bools

    def parts(self, columns: Columns) -> list[Ints]:
        """Return the requests that count, launch by launch."""
        return np.split(self.rows, launch_starts(columns.launch[self.rows])[1:])

    @property
    def well(self) -> Ints:
        """All requests that ended well, warm-up included."""
        return self.everyone[~self.failed[self.everyone]]


def places(columns: Columns, kept: Bools) -> Iterator[Place]:
    """Yield every engine and cell of a run that has measured requests, with its steady windows.

    Args:
        columns: the run.
        kept: (N,) which samples count.
    """
    failed = columns.failed()
    group = columns.engine * len(columns.cells) + columns.cell
    everyone = dict(split(np.flatnonzero(columns.phase != LOAD), group))
    for code, rows in split(np.flatnonzero(kept & (columns.phase == MEASURE)), group):
        engine, cell = columns.engines[code // len(columns.cells)], columns.cells[code % len(columns.cells)]
        # Launch after launch, so that every launch is one slice, and in the order of time.
        rows = rows[np.lexsort((columns.start_ns[rows], columns.launch[rows]))]
        found = windows(columns, rows, everyone[code], failed)
        if columns.told:
            some = [(columns.launches[launch], cell) in columns.told for launch in found.launch.tolist()]
            found = replace(found, seconds=np.where(some, np.nan, found.seconds))
        yield Place(engine, cell, found, rows, everyone[code], failed)


def split(rows: Ints, codes: Ints) -> list[tuple[int, Ints]]:
    """Return rows by their code."""
    order = rows[np.argsort(codes[rows], kind="stable")]
    present, starts = np.unique(codes[order], return_index=True)
    return list(zip(present.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else []


def launch_starts(launch: Ints) -> Ints:
    """Return where each launch begins in a column sorted by launch."""
    return np.flatnonzero(np.r_[True, launch[1:] != launch[:-1]])


def _overlapping(
    columns: Columns, rows: Ints, everyone: Ints, failed: Bools
) -> tuple[int, int, float, float, float, float, bool]:
    """Return begin, end, seconds, tokens, completed, sent_per_second and full of one launch."""
    cell = columns.cells[int(columns.cell[rows[0]])]
    mine = everyone[columns.launch[everyone] == columns.launch[rows[0]]]
    measured = mine[columns.phase[mine] == MEASURE]
    flagged = measured[(columns.excluded[measured] != KEPT) & ~failed[measured]]
    begin = int(columns.intended_ns[rows].min())
    sent = measured[columns.intended_ns[measured] >= begin]
    last = int(columns.intended_ns[sent].max())
    well = mine[~failed[mine]]
    # An overloaded cell gives up: nothing was served of what was still to be sent then.
    end = min(last, int(columns.end_ns[well].max()))
    rate = (len(sent) - 1) / ((last - begin) * NS) if last > begin else np.nan
    spoilt = len(np.setdiff1d(flagged, rows)) > 0
    warm = bool((columns.intended_ns[mine] < begin).any())
    if end > begin and warm and _long_enough(columns, cell, sent, end - begin):
        spent = (end - begin) * NS
        completed = served_inside(columns, well, begin, end)
        tokens = tokens_inside(columns, well, begin, end)
        full = True
    else:
        begin, end = int(columns.start_ns[rows].min()), int(columns.end_ns[rows].max())
        spent, tokens, completed = (end - begin) * NS, float(columns.output_tokens[rows].sum()), float(len(rows))
        full = False
    return begin, end, np.nan if spoilt or spent <= 0 else spent, tokens, completed, rate, full


def _long_enough(columns: Columns, cell: Cell, sent: Ints, window_ns: int) -> bool:
    """Return whether a window holds two rounds: of users, or of services where there are none."""
    if not cell.arrival:
        # How many are in flight is not told of some imported results.
        return cell.concurrency > 0 and len(sent) >= ROUNDS * cell.concurrency
    service = columns.end_ns[sent] - columns.start_ns[sent]
    # What was never started took no service.
    return window_ns >= ROUNDS * float(np.median(service[service > 0]))


def served_inside(columns: Columns, rows: Ints, begin_ns: int, end_ns: int) -> float:
    """Return the requests served in (begin, end]: of each one the share of its service that lies inside.

    Over any window this is the rate of completions in the long run (Little's law), also where requests that are
    batched together all end at once.
    """
    start, end = columns.start_ns[rows], columns.end_ns[rows]
    inside = np.minimum(end, end_ns) - np.maximum(start, begin_ns)
    return float((np.maximum(inside, 0) / np.maximum(end - start, 1)).sum())


def tokens_inside(columns: Columns, rows: Ints, begin_ns: int, end_ns: int) -> float:
    """Return the output tokens of requests whose stamps lie in (begin, end].

    Each stamp of a request with fewer stamps than tokens stands for tokens / stamps of them; a request without
    stamps counts where it ends.
    """
    stamps, owner = stamps_of(columns, rows)
    inside = np.bincount(owner[(stamps > begin_ns) & (stamps <= end_ns)], minlength=len(rows)).astype(np.float64)
    each = (columns.offsets[rows + 1] - columns.offsets[rows]).astype(np.float64)
    bare = each == 0
    inside[bare] = (columns.end_ns[rows[bare]] > begin_ns) & (columns.end_ns[rows[bare]] <= end_ns)
    return float((inside * columns.output_tokens[rows] / np.where(bare, 1, each)).sum())


def stamps_of(columns: Columns, rows: Ints) -> tuple[Ints, Ints]:
    """Return all token stamps of some requests, and to which of `rows` each one belongs."""
    counts = columns.offsets[rows + 1] - columns.offsets[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    place = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return columns.token_ns[columns.offsets[rows][owner] + place], owner


def _lost_ns(columns: Columns, rows: Ints, starts: Ints, everyone: Ints) -> Floats:
    """Return the nanoseconds inside each launch's window that belong to requests that were left out.

    Args:
        columns: the run.
        rows: requests that count, launch after launch.
        starts: where each launch begins in `rows`.
        everyone: all requests of the same engine and cell.
    """
    lost = np.zeros(len(starts))
    everyone = everyone[columns.phase[everyone] == MEASURE]
    if len(everyone) == len(rows):
        return lost
    for i, members in enumerate(np.split(rows, starts[1:])):
        same = everyone[columns.launch[everyone] == columns.launch[members[0]]]
        same = same[np.argsort(columns.start_ns[same], kind="stable")]
        begins = columns.start_ns[same]
        left_out = np.flatnonzero(~np.isin(same, members))
        first, last = columns.start_ns[members].min(), columns.start_ns[members].max()
        inside = left_out[(begins[left_out] > first) & (begins[left_out] < last)]
        lost[i] = float((begins[inside + 1] - begins[inside]).sum())
    return lost


def good_requests(columns: Columns, limits: Mapping[str, float]) -> Bools:
    """Return (N,) which requests kept every limit; a request of one token has no time per further token to keep.

    Args:
        columns: the run.
        limits: metric → most seconds.
    """
    times = request_times(columns)
    good = np.ones(len(columns), dtype=bool)
    for name, limit in limits.items():
        kept = request_values(name, columns, times) <= limit
        good &= kept | (columns.output_tokens <= 1) if name == "tpot_seconds" else kept
    return good


def goodput(columns: Columns, place: Place, good: Bools) -> Floats:
    """Return the requests a second that kept every limit, of each launch.

    In an open loop it is their share of the requests sent, times the rate of sending or of serving, whichever is
    smaller: sending, not ending, decides whether a request belongs to the window, so that one that never ended counts
    as what it is to its user; and of requests that are served after the window no more count than it served. In a
    closed loop users send when they are answered: it is the share of the answered ones times the rate of answers,
    in a window that failures have lengthened; of one user alone the window is without them, and the share with them.

    Args:
        columns: the run.
        place: engine and cell.
        good: from `good_requests`.
    """
    found, rows = place.found, place.rows
    rates = np.full(len(found.launch), np.nan)
    lost = place.everyone[place.failed[place.everyone] & (columns.phase[place.everyone] == MEASURE)]
    for i, launch in enumerate(found.launch.tolist()):
        mine = rows[columns.launch[rows] == launch]
        begin = columns.intended_ns[mine].min()
        gone = int(((columns.launch[lost] == launch) & (columns.intended_ns[lost] >= begin)).sum())
        rate = found.completed[i] / found.seconds[i]
        if place.cell.arrival and found.full[i]:
            rate = min(rate, found.sent_per_second[i])
        elif is_concurrent(place.cell):
            gone = 0
        if np.isfinite(found.seconds[i]):
            rates[i] = good[mine].sum() / (len(mine) + gone) * rate
    return rates


def good_tokens(columns: Columns, place: Place, good: Bools, rates: Floats) -> Floats:
    """Return the output tokens a second of requests that kept every limit: their rate times their mean length.

    Args:
        columns: the run.
        place: engine and cell.
        good: from `good_requests`.
        rates: (L,) from `goodput`.
    """
    tokens = np.zeros(len(rates))
    for i, launch in enumerate(place.found.launch.tolist()):
        mine = place.rows[(columns.launch[place.rows] == launch) & good[place.rows]]
        tokens[i] = columns.output_tokens[mine].mean() if len(mine) else 0.0
    return tokens * rates
