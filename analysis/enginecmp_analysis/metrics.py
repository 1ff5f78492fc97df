"""The metrics: what each one starts and ends with, which way is good, and what other tools call it.

The same name means different numbers in different tools, so every alias is checked by its boundary, not its name
(docs/METHODOLOGY.md). Where a tool has no number with the same boundary, the table says so by leaving it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import UsageError, did_you_mean
from enginecmp_analysis.columns import Columns

Floats = NDArray[np.float64]

NS = 1e-9


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that can be had from stamps.

    Attributes:
        name: with its unit.
        higher_is_better: which direction is good.
        boundary: what is inside the measured interval, in one sentence.
        per: what yields one value: a request, a token gap, or a whole launch.
        aliases: name of the same number in other tools.
    """

    name: str
    higher_is_better: bool
    boundary: str
    per: Literal["request", "gap", "launch"] = "request"
    aliases: Mapping[str, str] = field(default_factory=dict)


_ALL = (
    Metric(
        "ttft_seconds",
        False,
        "from the intended start (= the start in a closed loop) to the first token: queue, prefill, first sampling",
        aliases={
            "vllm": "ttft",
            "aiperf": "time_to_first_token",
            "guidellm": "time_to_first_token_ms",
            "mlperf": "TTFT",
        },
    ),
    Metric(
        "itl_seconds",
        False,
        "each gap between two tokens; absent where an engine hands out several tokens at once",
        per="gap",
        aliases={"vllm": "itl", "aiperf": "inter_chunk_latency", "inference-perf": "inter_token_latency"},
    ),
    Metric(
        "tpot_seconds",
        False,
        "(last token - first token) / (tokens - 1), one value a request; the first token is outside",
        aliases={
            "vllm": "tpot",
            "aiperf": "inter_token_latency",
            "guidellm": "inter_token_latency_ms",
            "mlperf": "TPOT",
            "inference-perf": "time_per_output_token",
        },
    ),
    Metric(
        "e2e_seconds",
        False,
        "from the intended start (= the start in a closed loop) to the end of the request",
        aliases={
            "vllm": "e2el",
            "aiperf": "request_latency",
            "guidellm": "request_latency",
            "mlperf": "SingleStream latency",
        },
    ),
    Metric(
        "prefill_tokens_per_second",
        True,
        "prompt tokens / (first token - start): prefill and the first sampling, no queue, no tokenization",
        aliases={"llama-bench": "pp (which leaves sampling out)"},
    ),
    Metric(
        "decode_tokens_per_second",
        True,
        "(tokens - 1) / (last token - first token), one value a request: decoding and sampling, no prefill",
        aliases={"llama-bench": "tg (which leaves sampling out)", "aiperf": "output_token_throughput_per_user"},
    ),
    Metric(
        "throughput_tokens_per_second",
        True,
        "tokens of the measured requests / (end of the last - start of the first), one value a launch",
        per="launch",
        aliases={
            "vllm": "output_throughput",
            "aiperf": "output_token_throughput",
            "guidellm": "output_tokens_per_second",
            "mlperf": "Offline tokens per second",
        },
    ),
    Metric(
        "load_seconds",
        False,
        "loading the model in a fresh process until the device is idle, one value a launch; file cache as it was",
        per="launch",
    ),
)

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in the order in which tables show them."""


def metric_of(name: str) -> Metric:
    """Return the metric that a name is about, be it the metric's own or one of its quantiles ("ttft_seconds_p90")."""
    return METRICS[name if name in METRICS else name.rpartition("_p")[0]]


def find_metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        UsageError: there is none of that name; says which is near.
    """
    if name not in METRICS:
        msg = f"unknown metric '{name}'{did_you_mean(name, METRICS)}"
        raise UsageError(msg)
    return METRICS[name]


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
            case "tpot_seconds":
                return np.where(times.gaps > 0, times.decode / times.gaps, np.nan)
            case "prefill_tokens_per_second":
                return np.where(times.prefill > 0, columns.prompt_tokens / times.prefill, np.nan)
            case "decode_tokens_per_second":
                return np.where((times.decode > 0) & (times.gaps > 0), times.gaps / times.decode, np.nan)
    msg = f"{metric} is not one value a request"
    raise ValueError(msg)


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
