"""What more load brings: scaling against one user, and the capacity that a sweep of rates reaches."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp.types import Cell
from enginecmp_analysis.windows import Windows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

KEEPS_UP = 0.95
"""An engine that completes this share of what it is offered keeps up: the rest is what is still in flight."""

LEAST_RATES = 3
"""A knee takes one rate below it, one above it, and one more."""

REACHED_SHARE = 0.8
"""Share of the launches that must have reached saturation before a capacity is given."""

Values = tuple[Ints, Floats, Ints]
"""Block, value and number of requests of each launch."""


def scaling(cells: Mapping[Cell, Windows]) -> dict[Cell, Values]:
    """Return throughput of c users / (c x throughput of one user) for closed loops, launch by launch.

    Args:
        cells: windows of one engine.
    """
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


def saturation(cells: Mapping[Cell, Windows]) -> tuple[dict[Cell, Values], dict[Cell, float]]:
    """Return the capacity of one engine in each of its sweeps, block by block.

    A sweep is three or more rates of cells that are alike otherwise; it is named by their cell without a rate.

    Args:
        cells: windows of one engine.

    Returns:
        Capacities of sweeps that reached saturation, and of the others the largest rate offered.
    """
    sweeps: dict[Cell, list[Windows]] = {}
    for cell, window in cells.items():
        if cell.arrival:
            sweeps.setdefault(msgspec.structs.replace(cell, rate_per_second=msgspec.UNSET), []).append(window)
    reached: dict[Cell, Values] = {}
    missed: dict[Cell, float] = {}
    for sweep, parts in sweeps.items():
        if len(parts) < LEAST_RATES:
            continue
        blocks = np.unique(np.concatenate([part.block for part in parts]))
        offered, completed, requests = (np.full((len(blocks), len(parts)), np.nan) for _ in range(3))
        for column, part in enumerate(parts):
            for i, block in enumerate(part.block.tolist()):
                at = int(np.searchsorted(blocks, block))
                offered[at, column] = part.sent_per_second[i]
                completed[at, column] = part.completed[i] / part.seconds[i]
                requests[at, column] = part.requests[i]
        values = np.array([capacity(x, y) for x, y in zip(offered, completed, strict=True)])
        usable = np.isfinite(offered + completed).sum(axis=1) >= LEAST_RATES
        top = np.nanmax(np.where(np.isfinite(offered), offered, 0), axis=1)
        if usable.any() and np.isfinite(values[usable]).mean() >= REACHED_SHARE:
            # A launch that kept up with everything has at least the capacity that it was offered.
            capped = np.where(np.isfinite(values), values, top)[usable]
            reached[sweep] = (blocks[usable], capped, np.nansum(requests[usable], axis=1).astype(np.int64))
        elif usable.any():
            missed[sweep] = float(np.median(top[usable]))
    return reached, missed


def capacity(offered: ArrayLike, completed: ArrayLike) -> float:
    """Return the capacity C that fits completed = min(offered, C) best; NaN where saturation was not reached.

    Least squares on logarithms, solved for every number of saturated rates. The utilization law bounds the
    throughput of a server by the offered rate below its capacity and by the capacity above (Denning & Buzen 1978);
    rates are those that the drawn arrivals really had, so chance in the arrivals is no error of the fit.

    Args:
        offered: (k,) requests sent a second.
        completed: (k,) requests completed a second while they were sent.
    """
    x, y = np.asarray(offered, dtype=np.float64), np.asarray(completed, dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    order = np.argsort(x[known])
    x, y = np.log(x[known][order]), np.log(y[known][order])
    n = len(x)
    if n < LEAST_RATES:
        return np.nan
    best, found = float(((y - x) ** 2).sum()), np.nan
    for first in range(n):
        # Rates from `first` on are saturated: their mean, held between the last rate below and the first above.
        level = min(max(float(y[first:].mean()), x[first - 1] if first else -np.inf), x[first])
        error = float(((y[:first] - x[:first]) ** 2).sum() + ((y[first:] - level) ** 2).sum())
        if error < best:
            best, found = error, level
    return float(np.exp(found)) if found < x[-1] + np.log(KEEPS_UP) else np.nan


def _by_block(blocks: Ints, values: Floats) -> dict[int, float]:
    """Return the mean of each block's launches."""
    found: dict[int, list[float]] = {}
    for block, value in zip(blocks.tolist(), values.tolist(), strict=True):
        found.setdefault(block, []).append(value)
    return {block: float(np.mean(some)) for block, some in found.items()}
