"""What more load brings: scaling against one user, and the capacity that a sweep of rates reaches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE, Columns
from enginecmp_analysis.data.stamps import NS
from enginecmp_analysis.data.windows import Place, served_inside

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_RATES = 3
"""Fewer rates are no sweep."""

SATURATED = 0.5
"""A rate saturates an engine when some request waits for it during more than this share of the time."""

REAL_WAIT = 0.25
"""A wait shorter than this share of a service is no queue: an engine that batches admits between two steps."""

ROUNDS = 3
"""Requests, for each one in service at once, that must be served while others wait."""

REACHED_SHARE = 0.8
"""Share of the launches that must have reached saturation before a capacity is given."""

Values = tuple[Ints, Floats, Ints]
"""Block, value and number of requests of each launch."""


def scaling(places: Iterable[Place]) -> dict[Cell, Values]:
    """Return throughput of c users / (c x throughput of one user) for closed loops, launch by launch.

    Args:
        places: cells of one engine.
    """
    cells = {place.cell: place.found for place in places}
    found: dict[Cell, Values] = {}
    for cell, many in cells.items():
        one = cells.get(msgspec.structs.replace(cell, concurrency=1))
        if one is None or cell.arrival or cell.concurrency < 2:
            continue
        single = _by_block(one.block, one.tokens / one.seconds)
        values = [
            rate / (cell.concurrency * single[block]) if block in single else np.nan
            for block, rate in zip(many.block.tolist(), (many.tokens / many.seconds).tolist(), strict=True)
        ]
        found[cell] = (many.block, np.array(values), many.requests)
    return found


@dataclass(frozen=True, slots=True)
class Waiting:
    """One launch at one rate.

    Attributes:
        share: of the time in which some request waited in front of the engine.
        seconds: that time.
        served: requests served in it.
        offered: requests sent a second.
        most: most requests in service at once.
    """

    share: float
    seconds: float
    served: float
    offered: float
    most: int


def waiting(columns: Columns, rows: Ints, well: Ints) -> Waiting:
    """Return how long requests waited in one launch of an open loop, and what was served meanwhile.

    As long as somebody waits, the engine has as much work as it takes: what it serves then is its capacity, for
    engines that queue and for those that batch alike. Outside of these times it may idle, or work on half a batch.
    Requests that are admitted after a step or two do not count as waiting.

    Args:
        columns: the run.
        rows: measured requests of the launch, failed ones included; those never started wait until they are refused.
        well: its requests that ended well, warm-up included.
    """
    sent = columns.intended_ns[rows]
    begin, last = int(sent.min()), int(sent.max())
    service = (columns.end_ns - columns.start_ns)[well]
    if last <= begin or not (service > 0).any():
        return Waiting(np.nan, 0.0, 0.0, np.nan, 0)
    start = columns.start_ns[rows]
    queued = start - sent >= REAL_WAIT * float(np.median(service[service > 0]))
    edges = merged(np.maximum(sent, begin)[queued], np.minimum(start, last)[queued])
    spent = sum(high - low for low, high in edges)
    served = sum(served_inside(columns, well, low, high) for low, high in edges)
    offered = (len(rows) - 1) / ((last - begin) * NS)
    return Waiting(spent / (last - begin), spent * NS, served, offered, _most_at_once(columns, well))


def _most_at_once(columns: Columns, rows: Ints) -> int:
    """Return the most requests that were in service at one moment; one that ends makes room for one that begins."""
    moments = np.r_[columns.end_ns[rows], columns.start_ns[rows]]
    steps = np.repeat([-1, 1], len(rows))
    return int(np.cumsum(steps[np.lexsort((steps, moments))]).max())


def merged(begins: Ints, ends: Ints) -> list[tuple[int, int]]:
    """Return the union of intervals as intervals that do not overlap; empty ones are dropped."""
    some = ends > begins
    order = np.argsort(begins[some], kind="stable")
    begins, ends = begins[some][order], np.maximum.accumulate(ends[some][order])
    if len(begins) == 0:
        return []
    first = np.flatnonzero(np.r_[True, begins[1:] > ends[:-1]])
    return list(zip(begins[first].tolist(), ends[np.r_[first[1:] - 1, len(ends) - 1]].tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Saturation:
    """What the sweeps of one engine gave; a sweep is named by its cell without a rate.

    Attributes:
        reached: capacities, block by block.
        missed: of sweeps that did not reach saturation, the largest rate offered.
        unfit: why the others can give no capacity.
    """

    reached: dict[Cell, Values]
    missed: dict[Cell, float]
    unfit: dict[Cell, str]


def saturation(columns: Columns, places: Iterable[Place]) -> Saturation:
    """Return the capacity of one engine in each of its sweeps, block by block.

    A sweep is three or more rates of cells that are alike otherwise; it is named by their cell without a rate. A
    launch reached saturation when requests waited most of the time at its largest rate; its capacity is what was
    served a second while requests waited, over all rates at which they did so most of the time, if that was three
    requests or more for each one in service at once.

    Args:
        columns: the run.
        places: cells of one engine.
    """
    sweeps: dict[Cell, list[Place]] = {}
    for place in places:
        if place.cell.arrival:
            sweeps.setdefault(msgspec.structs.replace(place.cell, rate_per_second=msgspec.UNSET), []).append(place)
    reached: dict[Cell, Values] = {}
    missed: dict[Cell, float] = {}
    unfit: dict[Cell, str] = {}
    for sweep, parts in sweeps.items():
        if len(parts) < LEAST_RATES:
            rates = f"{len(parts)} rate{'' if len(parts) == 1 else 's'}"
            unfit[sweep] = f"{rates} gave answers that count, a capacity takes {LEAST_RATES}"
            continue
        blocks: dict[int, list[Waiting]] = {}
        requests: dict[int, int] = {}
        for place in parts:
            for rows in _launches(columns, place):
                block = int(columns.block[rows[0]])
                well = place.well[columns.launch[place.well] == columns.launch[rows[0]]]
                blocks.setdefault(block, []).append(waiting(columns, rows, well))
                requests[block] = requests.get(block, 0) + len(rows)
        whole = {block: found for block, found in blocks.items() if len(found) >= LEAST_RATES}
        found = {block: capacity for block, rates in whole.items() if np.isfinite(capacity := _capacity(rates))}
        if whole and len(found) >= REACHED_SHARE * len(whole):
            counts = np.array([requests[block] for block in found], dtype=np.int64)
            reached[sweep] = (np.array(list(found)), np.array(list(found.values())), counts)
        elif whole:
            missed[sweep] = float(np.median([max(rate.offered for rate in rates) for rates in whole.values()]))
        else:
            unfit[sweep] = f"no launch has {LEAST_RATES} rates with an undisturbed window"
    return Saturation(reached, missed, unfit)


def _capacity(rates: list[Waiting]) -> float:
    """Return the capacity of one block; NaN where it was not reached, or not for long enough to tell."""
    largest = max(rates, key=lambda rate: rate.offered)
    full = [rate for rate in rates if rate.share > SATURATED]
    served = sum(rate.served for rate in full)
    if largest.share <= SATURATED or served < ROUNDS * max(rate.most for rate in rates):
        return np.nan
    return served / sum(rate.seconds for rate in full)


def _launches(columns: Columns, place: Place) -> list[Ints]:
    """Return the measured requests of each launch that has a valid window, failed ones included."""
    mine = place.everyone[columns.phase[place.everyone] == MEASURE]
    valid = place.found.launch[np.isfinite(place.found.seconds)]
    return [mine[columns.launch[mine] == launch] for launch in valid]


def _by_block(blocks: Ints, values: Floats) -> dict[int, float]:
    """Return the mean of each block's launches."""
    found: dict[int, list[float]] = {}
    for block, value in zip(blocks.tolist(), values.tolist(), strict=True):
        found.setdefault(block, []).append(value)
    return {block: float(np.mean(some)) for block, some in found.items()}
