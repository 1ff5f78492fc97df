"""Does throughput drift while it is measured, and was the load ever full?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import is_concurrent
from enginecmp_analysis.data.columns import Columns
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.stamps import NS
from enginecmp_analysis.data.windows import Place, stamps_of
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.stationarity import growth
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEAST_SECONDS = 10.0
"""Windows shorter than this have no trend worth a line."""

LEAST_LAUNCHES = 3

BINS = 12

NOTABLE = 0.02
"""Relative change over a window that is told even where throughput is not the primary metric."""

THROUGHPUT = "throughput_tokens_per_second"


def drifts(group: GroupResult, steady: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    """Yield the relative change of throughput a minute inside the steady windows of each engine and cell.

    The window is cut into twelve; a Theil-Sen slope over them is one value a launch, a t over launches judges it,
    or over runs where several are pooled.
    """
    windows: dict[tuple[str, Cell], list[tuple[int, float, float]]] = {}  # run, change a minute, seconds
    for number, (run, places) in enumerate(zip(group.runs, steady, strict=True)):
        for place in places:
            for i, seconds in enumerate(place.found.seconds.tolist()):
                if not seconds >= LEAST_SECONDS:
                    continue
                begin, end = int(place.found.begin_ns[i]), int(place.found.end_ns[i])
                mine = place.well[run.columns.launch[place.well] == place.found.launch[i]]
                rates = binned(run.columns, mine, begin, end)
                # From the middle of the first part to the middle of the last.
                minutes = (end - begin) * NS / 60 * (BINS - 1) / BINS
                change = float(growth([rates])[0])
                if np.isfinite(change):
                    found = (number, change / minutes, (end - begin) * NS)
                    windows.setdefault((place.engine, place.cell), []).append(found)
    for (engine, cell), several in windows.items():
        runs, slopes, lengths = zip(*several, strict=True)
        mean, low, high = mean_interval(replicates(slopes, runs))
        n, window = len(several), float(np.median(lengths))
        drifting = n >= LEAST_LAUNCHES and (low > 0 or high < 0)
        large = abs(mean) * window / 60 > NOTABLE
        words = f"throughput {'rises' if mean > 0 else 'falls'}" if drifting else "throughput shows no trend"
        limits = f" [{low:+.1%}, {high:+.1%}]" if np.isfinite(low) else ""
        text = f"{words}: {mean:+.1%} a minute{limits} over windows of {window:.0f} s ({n} launches)"
        yield Finding(
            scenario=group.context.scenario,
            topic="drift",
            engine=engine,
            cell=cell,
            verdict="drifts" if drifting else "no trend shown",
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=n,
            text=text.replace("%", " %"),
            notable=group.context.primary_metric == THROUGHPUT or (drifting and large),
            details={"window_seconds": window},
        )


def binned(columns: Columns, rows: Ints, begin_ns: int, end_ns: int) -> Floats:
    """Return the tokens of each twelfth of a window, every stamp standing for its request's tokens / stamps."""
    stamps, owner = stamps_of(columns, rows)
    each = columns.offsets[rows + 1] - columns.offsets[rows]
    weight = columns.output_tokens[rows] / np.maximum(each, 1)
    inside = (stamps > begin_ns) & (stamps <= end_ns)
    # Differences first: stamps since boot do not fit a float64 to the nanosecond.
    since = (stamps[inside] - begin_ns).astype(np.float64)
    place = np.clip((since / (end_ns - begin_ns) * BINS).astype(np.int64), 0, BINS - 1)
    return np.bincount(place, weights=weight[owner[inside]], minlength=BINS).astype(np.float64)


def fallbacks(steady: Sequence[Sequence[Place]]) -> list[tuple[Cell, str]]:
    """Return a note for every cell with several requests in flight whose window holds filling and draining too."""
    short: dict[Cell, dict[str, int]] = {}
    for places in steady:
        for place in places:
            if is_concurrent(place.cell) and not place.found.full.all():
                engines = short.setdefault(place.cell, {})
                engines[place.engine] = engines.get(place.engine, 0) + int((~place.found.full).sum())
    return [
        (
            cell,
            "throughput counts the filling and the draining of the load, for fewer than two rounds of requests or "
            "without warm-up before them: " + ", ".join(f"{engine} ({n} launches)" for engine, n in engines.items()),
        )
        for cell, engines in short.items()
    ]
