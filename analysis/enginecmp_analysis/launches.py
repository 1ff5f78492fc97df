"""Launch means: the numbers on which everything is decided.

Requests of one process share its memory layout, its clocks and its luck; a test on pooled requests calls 6 of 10
equal pairs different. The launch is the unit of replication, and its mean is one observation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginecmp.types import Cell
from enginecmp_analysis.columns import FAILED, KEPT, LOAD, MEASURE, Columns
from enginecmp_analysis.load import Run
from enginecmp_analysis.metrics import METRICS, NS, gap_values, request_times, request_values, seconds
from enginecmp_analysis.quantiles import SHOWN, harrell_davis, needed_per_launch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

Block = tuple[int, int]
"""Number of the run inside its group, and of the block inside the run."""


@dataclass(slots=True)
class LaunchMeans:
    """One metric of one engine in one cell, launch by launch.

    Attributes:
        blocks: the block each launch belongs to.
        means: (L,) mean of each launch.
        counts: (L,) values (requests, or token gaps) behind each mean.
        requests: (L,) requests behind each mean.
        values: (V,) all single values, launch after launch as in `counts`; for per-launch metrics the means.
    """

    blocks: list[Block]
    means: Floats
    counts: Ints
    requests: Ints
    values: Floats

    def per_launch(self) -> list[Floats]:
        """Return the single values of each launch."""
        return np.split(self.values, np.cumsum(self.counts)[:-1])


Key = tuple[str, Cell | None, str]
"""Engine, cell (None for what belongs to the whole launch), metric."""


def launch_means(
    runs: Iterable[Run], metrics: Iterable[str], keep: Iterable[NDArray[np.bool_]]
) -> dict[Key, LaunchMeans]:
    """Reduce runs of one group to launch means.

    Args:
        runs: runs that may be pooled.
        metrics: names of the metrics wanted.
        keep: for every run a mask over its samples: which ones count.

    Returns:
        One entry for every engine, cell and metric that has at least one value.
    """
    wanted = list(metrics)
    parts: dict[Key, list[LaunchMeans]] = {}
    for number, (run, kept) in enumerate(zip(runs, keep, strict=True)):
        for key, part in _run_means(number, run.columns, wanted, kept):
            parts.setdefault(key, []).append(part)
    return {key: _join(some) for key, some in parts.items()}


def measured(columns: Columns, *, include_flagged: bool = False) -> NDArray[np.bool_]:
    """Return which samples count: phases load and measure, status ok, no flag.

    Args:
        columns: the run.
        include_flagged: keep samples that carry a flag, as long as they ended well.
    """
    phase: NDArray[np.bool_] = (columns.phase == MEASURE) | (columns.phase == LOAD)
    kept: NDArray[np.bool_] = columns.excluded == KEPT
    if not include_flagged:
        return phase & kept
    return phase & ~_failed(columns)


def _failed(columns: Columns) -> NDArray[np.bool_]:
    codes = [code for code, reason in enumerate(columns.reasons) if reason in FAILED]
    found: NDArray[np.bool_] = np.isin(columns.excluded, codes)
    return found


def _run_means(
    number: int, columns: Columns, metrics: list[str], kept: NDArray[np.bool_]
) -> list[tuple[Key, LaunchMeans]]:
    found: list[tuple[Key, LaunchMeans]] = []
    times = request_times(columns)
    if "load_seconds" in metrics:
        rows = np.flatnonzero(kept & (columns.phase == LOAD))
        spent = seconds(columns.end_ns - columns.start_ns)
        for label, loads in _split(rows, columns.engine):
            loads = loads[np.argsort(columns.launch[loads], kind="stable")]
            means = _reduce(number, columns, loads, spent[loads], np.ones(len(loads), np.int64))
            found.append(((columns.engines[label], None, "load_seconds"), means))
    rows = np.flatnonzero(kept & (columns.phase == MEASURE))
    group = columns.engine * len(columns.cells) + columns.cell
    per_request = {
        name: request_values(name, columns, times)
        for name in metrics
        if name not in ("load_seconds", "throughput_tokens_per_second", "itl_seconds")
    }
    everyone = dict(_split(np.flatnonzero(columns.phase == MEASURE), group))
    for code, members in _split(rows, group):
        engine = columns.engines[code // len(columns.cells)]
        cell = columns.cells[code % len(columns.cells)]
        # Launch after launch, so that every launch is one slice, and in the order of time.
        members = members[np.lexsort((columns.start_ns[members], columns.launch[members]))]
        for name, values in per_request.items():
            present = members[np.isfinite(values[members])]
            if len(present):
                ones = np.ones(len(present), np.int64)
                found.append(((engine, cell, name), _reduce(number, columns, present, values[present], ones)))
        if "itl_seconds" in metrics:
            present = members[times.per_token[members]]
            if len(present):
                gaps, counts = gap_values(columns, present)
                found.append(((engine, cell, "itl_seconds"), _reduce(number, columns, present, gaps, counts)))
        if "throughput_tokens_per_second" in metrics:
            part = _throughput(number, columns, members, everyone[code])
            if len(part.means):
                found.append(((engine, cell, "throughput_tokens_per_second"), part))
    return found


def _split(rows: Ints, codes: Ints) -> list[tuple[int, Ints]]:
    """Return rows by their code."""
    order = rows[np.argsort(codes[rows], kind="stable")]
    present, starts = np.unique(codes[order], return_index=True)
    return list(zip(present.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else []


def _starts(launch: Ints) -> Ints:
    """Return where each launch begins in a column sorted by launch."""
    return np.flatnonzero(np.r_[True, launch[1:] != launch[:-1]])


def _reduce(number: int, columns: Columns, rows: Ints, values: Floats, counts: Ints) -> LaunchMeans:
    """Take the mean of each launch; `counts` says how many of `values` each row (request) has."""
    starts = _starts(columns.launch[rows])
    per_launch = np.add.reduceat(counts, starts)
    sums = np.add.reduceat(values, np.cumsum(per_launch) - per_launch)
    return LaunchMeans(
        blocks=[(number, block) for block in columns.block[rows[starts]].tolist()],
        means=sums / per_launch,
        counts=per_launch,
        requests=np.diff(np.r_[starts, len(rows)]),
        values=values,
    )


def _throughput(number: int, columns: Columns, rows: Ints, everyone: Ints) -> LaunchMeans:
    """Tokens over the steady window of each launch.

    The window runs from the first start to the last end, idle time between requests included. In a closed loop
    of one request at a time the slot of a request that was left out, from its start to the next one's, is taken
    out of the window: its tokens do not count, so its time must not either. Where requests overlap no slot can be
    taken out: a request that failed then costs its tokens, as it does a user, and a launch with a flagged request
    in its window has no throughput.
    """
    starts = _starts(columns.launch[rows])
    tokens = np.add.reduceat(columns.output_tokens[rows], starts).astype(np.float64)
    begin = np.minimum.reduceat(columns.start_ns[rows], starts)
    window = (np.maximum.reduceat(columns.end_ns[rows], starts) - begin).astype(np.float64)
    if columns.cells[int(columns.cell[rows[0]])].concurrency == 1:
        window -= _lost_ns(columns, rows, starts, everyone)
    elif len(everyone) > len(rows):
        flagged = everyone[(columns.excluded[everyone] != KEPT) & ~_failed(columns)[everyone]]
        spoilt = columns.launch[np.setdiff1d(flagged, rows)]
        window[np.isin(columns.launch[rows[starts]], spoilt)] = 0
    present = (window > 0) & (tokens > 0)
    rates = tokens[present] / (window[present] * NS)
    return LaunchMeans(
        blocks=[(number, block) for block in columns.block[rows[starts[present]]].tolist()],
        means=rates,
        counts=np.ones(len(rates), np.int64),
        requests=np.diff(np.r_[starts, len(rows)])[present],
        values=rates,
    )


def _lost_ns(columns: Columns, rows: Ints, starts: Ints, everyone: Ints) -> Floats:
    """Return the nanoseconds inside each launch's window that belong to requests that were left out.

    Args:
        columns: the run.
        rows: requests that count, launch after launch.
        starts: where each launch begins in `rows`.
        everyone: all measured requests of the same engine and cell.
    """
    lost = np.zeros(len(starts))
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


def _join(parts: list[LaunchMeans]) -> LaunchMeans:
    if len(parts) == 1:
        return parts[0]
    return LaunchMeans(
        blocks=[block for part in parts for block in part.blocks],
        means=np.concatenate([part.means for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
        requests=np.concatenate([part.requests for part in parts]),
        values=np.concatenate([part.values for part in parts]),
    )


def quantile_launches(
    means: dict[Key, LaunchMeans], metrics: Iterable[str]
) -> tuple[dict[Key, LaunchMeans], list[str]]:
    """Return quantiles of each launch (Harrell-Davis) in place of its mean, named like "ttft_seconds_p90".

    A launch with too few values for a quantile has none; a metric of one value a launch has none at all.

    Returns:
        The launches, and a note for every quantile that no launch was long enough for.
    """
    names = {name for name in metrics if METRICS[name].per != "launch"}
    found: dict[Key, LaunchMeans] = {}
    for (engine, cell, name), launches in means.items():
        if name not in names:
            continue
        parts = launches.per_launch()
        for q in SHOWN:
            enough = [i for i, part in enumerate(parts) if len(part) >= needed_per_launch(q)]
            if enough:
                found[engine, cell, f"{name}_p{round(100 * q)}"] = LaunchMeans(
                    blocks=[launches.blocks[i] for i in enough],
                    means=np.array([harrell_davis(parts[i], q) for i in enough]),
                    counts=launches.counts[enough],
                    requests=launches.requests[enough],
                    values=np.concatenate([parts[i] for i in enough]),
                )
    present = {label for _, _, label in found}
    notes = []
    for q in SHOWN:
        missing = [name for _, _, name in means if name in names and f"{name}_p{round(100 * q)}" not in present]
        if missing:
            which = ", ".join(dict.fromkeys(missing))
            notes.append(f"p{round(100 * q)}: n/a (need {needed_per_launch(q)} values a launch) for {which}")
    return found, notes
