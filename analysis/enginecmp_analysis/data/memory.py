"""Memory and bandwidth of launches: peaks, slack, leaks, bytes that decoding must read.

Each function gives one number a launch, NaN where worker or engine did not tell what it takes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginecmp_analysis.data.cells import is_concurrent
from enginecmp_analysis.data.columns import LOAD, MEASURE, Columns
from enginecmp_analysis.data.stamps import NS, RequestTimes
from enginecmp_analysis.data.windows import Windows, stamps_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PAGE_BYTES = 4096
"""Resident memory grows by whole pages, so a growth below one page in the window cannot be told from none."""

LEAK_REQUESTS = 100
"""Shorter launches say nothing of a leak."""

SETTLING = 0.2
"""Share of a launch in which an allocator may still grow to its working size."""

SEGMENTS = 10


def of_launches(columns: Columns, name: str) -> Floats:
    """Return a metric of the load samples for every launch code; NaN where it is absent."""
    values = columns.metric(name)
    found = np.full(len(columns.launches), np.nan)
    loads = np.flatnonzero((columns.phase == LOAD) & np.isfinite(values))
    found[columns.launch[loads]] = values[loads]
    return found


def peak_above_empty(columns: Columns, parts: list[Ints]) -> Floats:
    """Return the highest resident memory of each launch in a cell, less what its process held when empty.

    Args:
        columns: the run.
        parts: requests of each launch.
    """
    peak, empty = columns.metric("peak_rss_bytes"), of_launches(columns, "empty_rss_bytes")
    return np.array([_highest(peak[part]) - empty[columns.launch[part[0]]] for part in parts])


def allocator_slack(columns: Columns, parts: list[Ints], peaks: Floats) -> Floats:
    """Return the bytes held beyond what is used, see the boundary of `allocator_slack_bytes`.

    Args:
        columns: the run.
        parts: requests of each launch.
        peaks: from `peak_above_empty`.
    """
    held = columns.metric("reserved_bytes") - columns.metric("allocated_bytes")
    weights, cache = _weights(columns), columns.metric("kv_cache_bytes")
    told = np.array([_highest(held[part]) for part in parts])
    rest = np.array([_highest(weights[part]) + _highest(cache[part]) for part in parts])
    return np.where(np.isfinite(told), told, peaks - rest)


def _weights(columns: Columns) -> Floats:
    """Return the bytes of the weights for every sample; those of the load where a request does not tell."""
    own = columns.metric("weights_bytes")
    return np.where(np.isfinite(own), own, of_launches(columns, "weights_bytes")[columns.launch])


def _highest(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if len(known) else np.nan


def leaks(columns: Columns, parts: list[Ints]) -> Floats:
    """Return the lasting growth of resident memory in bytes a request; NaN for launches that are too short.

    Args:
        columns: the run.
        parts: requests of each launch, in the order of time.
    """
    memory = columns.metric("rss_bytes")
    return np.array([lasting_growth(memory[part])[0] for part in parts])


def lasting_growth(memory: Floats) -> tuple[float, float]:
    """Return the growth of resident memory in bytes a request that goes on, and how much of it most parts show.

    Allocators grow in steps and fall back, which is no leak. A leak goes on: after the first fifth of a launch, the
    growth of the typical tenth of the rest and the growth over all of it both show it, so the smaller of the two is
    the estimate. A few large steps leave the typical tenth flat, a sawtooth leaves the whole flat. The second number
    is what three quarters of the tenths exceed: noise between a few steps up makes the typical tenth rise a little,
    but not this one.

    Args:
        memory: (n,) resident memory after each request of a launch; NaN where it was not read.
    """
    held = memory[np.isfinite(memory)]
    if len(held) < LEAK_REQUESTS:
        return np.nan, np.nan
    held = held[int(SETTLING * len(held)) :]
    size = len(held) // SEGMENTS
    # Medians of segments: a peak that is given back at once is no growth.
    levels = np.median(held[: size * SEGMENTS].reshape(SEGMENTS, size), axis=1)
    steps = np.diff(levels) / size
    whole = float(levels[-1] - levels[0]) / (size * (SEGMENTS - 1))
    return min(float(np.median(steps)), whole), float(np.quantile(steps, 0.25))


def leak_resolution(requests: int) -> float:
    """Return the smallest growth in bytes a request that whole pages can show over so many requests."""
    return PAGE_BYTES / max(1.0, requests * (1 - SETTLING))


def decode_bandwidth(columns: Columns, times: RequestTimes, found: Windows, parts: list[Ints], all_: Ints) -> Floats:
    """Return the bytes that decoding must read a second, of each launch.

    A step reads the weights once, and the KV cache of every request in it: on average that of the prompt and half
    the output. One request at a time: bytes of all steps over their time. Several in flight: stamps that are equal
    belong to one step; the median gap between steps is the time of one, so that steps which also run a prompt do
    not count; the engine that queues has one request in every step. Absent where an engine guesses ahead: a pass of
    it gives several tokens, and what its guesses read is not known.

    Args:
        columns: the run.
        times: from `request_times`.
        found: windows of the launches.
        parts: requests of each launch that count.
        all_: all requests of the same engine and cell that ended well, warm-up included.
    """
    weights, kept = _weights(columns), columns.metric("kv_cache_bytes")
    guesses = np.isfinite(columns.metric("tokens_per_step"))
    length = columns.prompt_tokens + columns.output_tokens
    with np.errstate(invalid="ignore", divide="ignore"):
        cache = np.nan_to_num(kept * (columns.prompt_tokens + columns.output_tokens / 2) / length)
    rates = np.full(len(parts), np.nan)
    for i, part in enumerate(parts):
        weight = _highest(weights[part])
        if not np.isfinite(weight) or guesses[part].any():
            continue
        if not is_concurrent(columns.cells[int(columns.cell[part[0]])]):
            steps = part[np.isfinite(times.decode[part]) & (times.gaps[part] > 0)]
            spent = float(times.decode[steps].sum())
            read = float(((weight + cache[steps]) * times.gaps[steps]).sum())
            rates[i] = read / spent if spent > 0 else np.nan
            continue
        mine = all_[columns.launch[all_] == found.launch[i]]
        mine = mine[times.per_token[mine]]
        stamps, owner = stamps_of(columns, mine)
        inside = (stamps > found.begin_ns[i]) & (stamps <= found.end_ns[i])
        moments = np.unique(stamps[inside])
        if len(moments) > 2:
            gap = float(np.median(np.diff(moments))) * NS
            # Each token brings its request's cache into the step that it came out of.
            read = weight + float(cache[mine][owner[inside]].sum()) / len(moments)
            rates[i] = read / gap if gap > 0 else np.nan
    return rates


def kv_slopes(columns: Columns, rows: Ints) -> list[tuple[int, float]]:
    """Return (block, bytes a token) of the KV cache of one engine: its slope over the lengths of requests.

    Blocks in which all requests have one length have no slope.

    Args:
        columns: the run.
        rows: measured requests of the engine that count.
    """
    cache = columns.metric("kv_cache_bytes")
    rows = rows[np.isfinite(cache[rows]) & (columns.phase[rows] == MEASURE)]
    length = (columns.prompt_tokens + columns.output_tokens).astype(np.float64)
    slopes = []
    for block in np.unique(columns.block[rows]).tolist():
        mine = rows[columns.block[rows] == block]
        x, y = length[mine], cache[mine]
        if np.ptp(x) > 0:
            x = x - x.mean()
            slopes.append((block, float((x * y).sum() / (x * x).sum())))
    return slopes
