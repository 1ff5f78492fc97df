"""The metrics: what each one starts and ends with, which way is good, and what other tools call it.

The same name means different numbers in different tools, so every alias is checked by its boundary, not its name
(docs/METHODOLOGY.md). Where a tool has no number with the same boundary, the table says so by leaving it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from enginecmp.errors import ResultsError, UsageError, did_you_mean, meant
from enginecmp.format.enough import REQUESTS_NEEDED
from enginecmp.format.measures import Measure
from enginecmp.format.records import PROFILED

Kinds = frozenset[str]

REQUESTS: Kinds = frozenset({"requests"})
LAUNCHED: Kinds = frozenset({"requests", "load"})
ANY: Kinds = frozenset({"requests", "load", "operation", "profile"})

FASTER = ("faster", "slower")
LESS = ("less", "more")
MORE = ("more", "less")
BETTER = ("better", "worse")


@dataclass(frozen=True, slots=True)
class Metric:
    """One number that can be had from stamps, or from what worker, engine and sensors tell.

    Attributes:
        name: with its unit.
        higher_is_better: which direction is good.
        boundary: what is inside the measured interval, in one sentence.
        per: what yields one value: a request, a token gap, or a whole launch.
        aliases: name of the same number in other tools.
        kinds: kinds of scenario that have it.
        requests_needed: requests a launch must have before a verdict may rest on it.
        signed: whether a value below zero can be meant: it is a difference or a slope.
        compared: whether engines are compared on it. A number that may be zero or below has no ratio, and one that
            follows from the model alone has no spread.
        bytes_held: whether it is memory of the engine's own, which no flag of `SPOIL_TIMES` touches.
        words: for a verdict that says "faster", and for one that says "slower".
        beside: stands beside the primary metric wherever engines are ranked.
        brought: it came with the measurement of a plugin.
    """

    name: str
    higher_is_better: bool
    boundary: str
    per: Literal["request", "gap", "launch"] = "request"
    aliases: Mapping[str, str] = field(default_factory=dict)
    kinds: Kinds = REQUESTS
    requests_needed: int = REQUESTS_NEEDED
    signed: bool = False
    compared: bool = True
    bytes_held: bool = False
    words: tuple[str, str] = FASTER
    beside: bool = False
    brought: bool = False

    def word(self, verdict: str) -> str:
        """Return a verdict in the words of this metric: "faster" is "less" for memory and energy."""
        return dict(zip(FASTER, self.words, strict=True)).get(verdict, verdict)


_TIMES = (
    Metric(
        "ttft_seconds",
        False,
        "from the intended start (in a closed loop: the sending) to the first token: queue, prefill, first sampling",
        aliases={
            "vllm": "ttft",
            "aiperf": "time_to_first_token",
            "guidellm": "time_to_first_token_ms",
            "mlperf": "TTFT",
        },
    ),
    Metric(
        "queue_seconds",
        False,
        "from the intended start to the start: waiting in front of the engine; where several requests are in flight",
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
        "from the intended start (in a closed loop: the sending) to the end of the request or of the profiled pass",
        aliases={
            "vllm": "e2el",
            "aiperf": "request_latency",
            "guidellm": "request_latency",
            "mlperf": "SingleStream latency",
        },
        kinds=frozenset({"requests", "profile"}),
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
)

_SAID = (
    Metric(
        "output_tokens",
        True,
        "tokens of an answer, the one that ends it included; where requests may end by themselves",
        compared=False,
        requests_needed=1,
        words=MORE,
    ),
    Metric(
        "valid_json_share",
        True,
        "answers that end by themselves and follow the JSON Schema they were asked for / all answers; 1 or 0 a request",
        compared=False,
        requests_needed=1,
        words=MORE,
    ),
)

_TOLD = (
    *(
        Metric(
            f"device_{phase}_seconds",
            False,
            f"time of the {phase} on the device, by its own clock, as the engine tells it",
        )
        for phase in ("prefill", "decode")
    ),
    Metric(
        "first_visible_token_seconds",
        False,
        "request sent to first chunk that is no reasoning, of a server that reasons, one request at a time",
    ),
    *(
        Metric(
            f"{way}_round_trip_seconds",
            False,
            f"{what}, median of 11 before anything is timed; part of every time of a server",
            compared=False,
            requests_needed=1,
        )
        for way, what in (("network", "TCP connection to the server"), ("http", "GET of the server's list of models"))
    ),
    Metric(
        "tokens_per_step",
        True,
        "tokens a request got per pass that it generated in, of an engine that guesses ahead, as it tells it",
        compared=False,
        words=MORE,
    ),
    Metric(
        "draft_acceptance_rate",
        True,
        "guessed tokens that counted / all that were guessed, as the engine tells it",
        compared=False,
        words=MORE,
    ),
)

_PREFIXES = (
    Metric(
        "prefix_cache_hit_share",
        True,
        "prompt tokens that the engine found in its prefix cache / all prompt tokens, as it tells them, one value a "
        "launch; in a cell with several in flight over all requests, warm-up included",
        per="launch",
        compared=False,
        words=MORE,
    ),
    Metric(
        "known_prompt_share",
        True,
        "prompt tokens that an earlier request of the plan has had / all prompt tokens: what a perfect prefix cache "
        "would find; one value a launch of a workload",
        per="launch",
        compared=False,
        words=MORE,
    ),
)

_RATES = (
    Metric(
        "throughput_tokens_per_second",
        True,
        "output tokens inside the steady window / its length, one value a launch; the window is from the first start "
        "to the last end with one user, and from the first sending to the last where several requests are in flight",
        per="launch",
        aliases={
            "vllm": "output_throughput",
            "aiperf": "output_token_throughput",
            "guidellm": "output_tokens_per_second",
            "mlperf": "Offline tokens per second",
        },
    ),
    Metric(
        "requests_per_second",
        True,
        "requests served inside the steady window, those at its ends in part / its length, one value a launch",
        per="launch",
        aliases={"vllm": "request_throughput", "aiperf": "request_throughput", "guidellm": "requests_per_second"},
    ),
    Metric(
        "goodput_requests_per_second",
        True,
        "share of the requests sent in the steady window that kept the scenario's limits (failed ones did not) x the "
        "rate of serving, in an open loop that of sending where it is smaller; never above requests_per_second",
        per="launch",
        aliases={"vllm": "request_goodput", "aiperf": "goodput"},
        words=MORE,
    ),
    Metric(
        "goodput_tokens_per_second",
        True,
        "goodput_requests_per_second x the mean output tokens of the requests that kept the limits: tokens that count",
        per="launch",
        words=MORE,
    ),
    Metric(
        "scaling_efficiency",
        True,
        "throughput of c users / (c x throughput of one user), one value a launch",
        per="launch",
        words=BETTER,
    ),
    Metric(
        "saturation_requests_per_second",
        True,
        "requests served a second in an open loop while others wait for the engine, one value a launch; absent where "
        "it kept up with every rate of the sweep",
        per="launch",
        words=MORE,
    ),
)

_STARTING = (
    Metric(
        "load_seconds",
        False,
        "loading the model in a fresh process until the device is idle, one value a launch; file cache as it was",
        per="launch",
        kinds=ANY,
        requests_needed=1,
    ),
    *(
        Metric(
            f"load_{phase}_seconds",
            False,
            f"the part of load_seconds that {what}, as the engine tells it, one value a launch",
            per="launch",
            kinds=ANY,
            requests_needed=1,
        )
        for phase, what in (
            ("parse", "reads the file's header and metadata"),
            ("map", "brings the weights into memory: mapped, read or converted"),
            ("init", "makes everything else ready: cache, buffers, kernels"),
        )
    ),
    Metric(
        "startup_seconds",
        False,
        "from the start of the process to the imported plugin, one value a launch; the model is not loaded yet",
        per="launch",
        kinds=ANY,
        requests_needed=1,
    ),
    Metric(
        "first_token_from_start_seconds",
        False,
        "from the start of the process to the first token of its first request: start, import, load, prefill",
        per="launch",
        kinds=frozenset({"load"}),
        requests_needed=1,
    ),
)

_OPERATIONS = (
    Metric(
        "operation_seconds",
        False,
        "one call of the operation: a timed loop of calls over their number",
        kinds=frozenset({"operation"}),
    ),
    Metric(
        "operation_tokens_per_second",
        True,
        "tokens (or rows) of one call / operation_seconds",
        kinds=frozenset({"operation"}),
    ),
    *(
        Metric(
            f"{name}_seconds",
            False,
            f"time of the component {name} in one forward pass, as the engine's own profile tells it",
            kinds=frozenset({"profile"}),
        )
        for name in PROFILED
    ),
)

_RESOURCES = (
    Metric(
        "peak_rss_above_empty_bytes",
        False,
        "resident memory of the worker at its highest in the cell, less what it held before the model was loaded",
        per="launch",
        kinds=LAUNCHED,
        requests_needed=1,
        bytes_held=True,
        words=LESS,
    ),
    Metric(
        "allocator_slack_bytes",
        False,
        "memory held beyond what is used: reserved - allocated where the allocator tells, else peak resident memory "
        "above empty - weights - KV cache, which counts activations and buffers too",
        per="launch",
        kinds=LAUNCHED,
        requests_needed=1,
        signed=True,
        compared=False,
        bytes_held=True,
        words=LESS,
    ),
    Metric(
        "kv_bytes_per_token",
        False,
        "slope of the KV cache's bytes over the tokens of a request, across the cells of a block",
        per="launch",
        kinds=LAUNCHED,
        requests_needed=1,
        compared=False,
        bytes_held=True,
        words=LESS,
    ),
    Metric(
        "leak_bytes_per_request",
        False,
        "lasting growth of resident memory over the requests of a launch; only with 100 requests a launch or more",
        per="launch",
        signed=True,
        compared=False,
        bytes_held=True,
        words=LESS,
    ),
    Metric(
        "decode_bandwidth_bytes_per_second",
        True,
        "bytes that must be read for a token (weights once a step, and the KV cache) / time of a decoding step",
        per="launch",
    ),
    Metric(
        "decode_bandwidth_share",
        True,
        "decode_bandwidth_bytes_per_second / copy bandwidth of the machine",
        per="launch",
        compared=False,
    ),
    Metric(
        "gpu_memory_bytes",
        False,
        "most memory in use on all GPUs together, whoever holds it, in the steady window, as the sensor reads it",
        per="launch",
        requests_needed=1,
        words=LESS,
    ),
    Metric(
        "gpu_busy_share",
        True,
        "mean share of the time in which the busiest GPU was working, in the steady window, as the sensor reads it",
        per="launch",
        requests_needed=1,
        compared=False,
        words=MORE,
    ),
    Metric(
        "throughput_tokens_per_second_per_gpu",
        True,
        "throughput_tokens_per_second / GPUs that the engine says it computes on",
        per="launch",
    ),
    *(
        Metric(
            f"server_{state}_requests",
            False,
            f"mean number of requests that {what}, in the steady window, as it says itself",
            per="launch",
            requests_needed=1,
            compared=False,
            words=LESS,
        )
        for state, what in (("running", "the server was working on"), ("waiting", "waited in the server"))
    ),
    Metric(
        "server_kv_used_share",
        False,
        "largest share of the server's KV cache in use, in the steady window, as it says itself",
        per="launch",
        requests_needed=1,
        compared=False,
        words=LESS,
    ),
    Metric(
        "server_preemptions",
        False,
        "requests that the server put back to compute them again, in the steady window, as it says",
        per="launch",
        requests_needed=1,
        compared=False,
        words=LESS,
    ),
    Metric(
        "server_prefix_hit_share",
        True,
        "prompt tokens that the server found in its prefix cache / those it looked for, in the steady window",
        per="launch",
        requests_needed=1,
        compared=False,
        words=MORE,
    ),
    Metric(
        "joules_per_token",
        False,
        "energy of all counters that can be read (CPU packages, memory, GPUs), idle share included, over the steady "
        "window / its output tokens",
        per="launch",
        words=LESS,
    ),
)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (*_TIMES, *_SAID, *_TOLD, *_PREFIXES, *_RATES, *_STARTING, *_OPERATIONS, *_RESOURCES)
}
"""Every metric by name, in the order in which tables show them; those of plugins' measurements come with the runs that
are read (`learn`)."""

COMPONENT_OF: Mapping[str, str] = {f"{name}_seconds": name for name in PROFILED}
"""Metric → the component of a forward pass whose time it is."""


def measure_of(scenario: Mapping[str, Any]) -> Measure | None:
    """Return what a manifest's scenario tells of the measurement of a plugin; None in all other runs.

    Raises:
        ResultsError: it is not what it should be.
    """
    try:
        return msgspec.convert(scenario.get("measure"), Measure | None)
    except msgspec.ValidationError as error:
        msg = f"manifest.json: scenario.measure: {error}"
        raise ResultsError(msg) from error


def learn(measure: Measure | None) -> None:
    """Know the metrics of a plugin's measurement from here on, as the run that used it wrote them down.

    Raises:
        ResultsError: a name is a metric of ours, or one that another run describes otherwise.
    """
    for told in measure.metrics if measure is not None else ():
        metric = Metric(
            name=told.name,
            higher_is_better=told.higher_is_better,
            boundary=told.what,
            kinds=frozenset({"operation"}),
            compared=told.compared,
            words=told.words,
            beside=told.beside,
            brought=True,
        )
        known = METRICS.setdefault(told.name, metric)
        if known != metric:
            whose = "another run's" if known.brought else "cmp's own"
            msg = f"metric {told.name} of a plugin's measurement is not {whose} of that name; give it another"
            raise ResultsError(msg)


def metrics_of(kind: str) -> list[str]:
    """Return the names of the metrics that a kind of scenario has, in the order of tables."""
    return [metric.name for metric in METRICS.values() if kind in metric.kinds]


def steady_metric(kind: str) -> str:
    """Return the per-request metric by which steadiness of launches is judged in a kind of scenario."""
    return "operation_seconds" if kind == "operation" else "e2e_seconds"


def verdict_word(metric: str, verdict: str) -> str:
    """Return a verdict in the words of the metric of that name."""
    return metric_of(metric).word(verdict)


def is_metric(name: str) -> bool:
    """Return whether a name is a metric's own, or one of its quantiles."""
    return name in METRICS or name.rpartition("_p")[0] in METRICS


def metric_of(name: str) -> Metric:
    """Return the metric that a name is about, be it the metric's own or one of its quantiles ("ttft_seconds_p90")."""
    return METRICS[name if name in METRICS else name.rpartition("_p")[0]]


def find_metric(name: str) -> Metric:
    """Return a metric by its name.

    Raises:
        UsageError: there is none of that name; says which is near.
    """
    name = meant(name, METRICS)
    if name not in METRICS:
        msg = f"unknown metric '{name}'{did_you_mean(name, METRICS)}"
        raise UsageError(msg)
    return METRICS[name]
