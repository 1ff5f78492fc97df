"""From stamps to seconds: the times of every request, and the gaps between its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginecmp_analysis.data.cells import is_concurrent
from enginecmp_analysis.data.columns import KNOWN_METRICS, Columns
from enginecmp_analysis.data.metrics import METRICS

Floats = NDArray[np.float64]

NS = 1e-9


def seconds(nanoseconds: NDArray[np.int64]) -> Floats:
    """Return whole nanoseconds as seconds."""
    return nanoseconds.astype(np.float64) * NS


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds of every request of a run, NaN where a metric is absent; all shapes (N,).

    Attributes:
        ttft: intended start to first token.
        e2e: intended start to end.
        prefill: start to first token.
        decode: first to last token; NaN with fewer than two tokens.
        gaps: number of token gaps that `decode` spans by count of tokens, output_tokens - 1.
        per_token: whether every token has its own stamp, so that single gaps are known.
    """

    ttft: Floats
    e2e: Floats
    prefill: Floats
    decode: Floats
    gaps: Floats
    per_token: NDArray[np.bool_]


def request_times(columns: Columns) -> RequestTimes:
    """Derive the times of every request from its stamps."""
    stamps = np.diff(columns.offsets)
    some, several = stamps > 0, stamps > 1
    first = np.full(len(columns), np.nan)
    decode = np.full(len(columns), np.nan)
    # Differences stay whole numbers: nanosecond clocks since boot no longer fit a float64 exactly after 104 days.
    at_first = columns.token_ns[columns.offsets[:-1][some]]
    first[some] = at_first - columns.start_ns[some]
    at_last = columns.token_ns[columns.offsets[1:][several] - 1]
    decode[several] = at_last - columns.token_ns[columns.offsets[:-1][several]]
    waited = columns.start_ns - columns.intended_ns
    return RequestTimes(
        ttft=(first + waited) * NS,
        e2e=seconds(columns.end_ns - columns.intended_ns),
        prefill=first * NS,
        decode=decode * NS,
        gaps=(columns.output_tokens - 1).astype(np.float64),
        per_token=(stamps == columns.output_tokens) & several,
    )


def request_values(metric: str, columns: Columns, times: RequestTimes) -> Floats:
    """Return one metric for every request, NaN where it is absent.

    A rate over a time that the clock could not resolve (zero) is absent, not infinite.

    Args:
        metric: name of a metric with `per` == "request".
        columns: the run.
        times: from `request_times`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        match metric:
            case "ttft_seconds":
                return times.ttft
            case "e2e_seconds":
                return times.e2e
            case "output_tokens":
                return np.where(columns.metric("asked_may_end") == 1, columns.output_tokens, np.nan)
            case "queue_seconds":
                return _queue_seconds(columns)
            case "operation_tokens_per_second":
                spent = columns.metric("operation_seconds")
                return np.where(spent > 0, columns.prompt_tokens / spent, np.nan)
            case "tpot_seconds":
                return np.where(times.gaps > 0, times.decode / times.gaps, np.nan)
            case "prefill_tokens_per_second":
                return np.where(times.prefill > 0, columns.prompt_tokens / times.prefill, np.nan)
            case "decode_tokens_per_second":
                return np.where((times.decode > 0) & (times.gaps > 0), times.gaps / times.decode, np.nan)
    if metric not in KNOWN_METRICS and not METRICS[metric].brought:
        msg = f"{metric} is not one value a request"
        raise ValueError(msg)
    return columns.metric(metric)


def _queue_seconds(columns: Columns) -> Floats:
    """Return the wait before each request, NaN in cells without one.

    With one request at a time there is no queue; and where not a single start is off the intended one, as in results
    of tools that do not tell it, waiting was not measured.
    """
    waits = columns.start_ns - columns.intended_ns
    waited = np.bincount(columns.cell, weights=waits != 0, minlength=len(columns.cells)) > 0
    several = np.array([is_concurrent(cell) for cell in columns.cells], dtype=bool)
    return np.where((several & waited)[columns.cell], seconds(waits), np.nan)


def gap_values(columns: Columns, requests: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """Return every token gap of the given requests in seconds, and how many each request has.

    Args:
        columns: the run.
        requests: (R,) row numbers of requests with a stamp for every token, at least two each.

    Returns:
        Gaps, request after request, and their number for each request, shape (R,).
    """
    counts = columns.offsets[requests + 1] - columns.offsets[requests]
    starts = np.cumsum(counts) - counts
    rows = np.arange(int(counts.sum())) + np.repeat(columns.offsets[requests] - starts, counts)
    differences = np.diff(columns.token_ns[rows]).astype(np.float64)
    # The difference across a border between two requests is not a gap.
    inside = np.ones(len(differences), dtype=bool)
    inside[starts[1:] - 1] = False
    return differences[inside] * NS, counts - 1
