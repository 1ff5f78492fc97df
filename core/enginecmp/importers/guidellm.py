"""guidellm: `benchmarks.json`, report versions 1 and 2.

One benchmark a load, each with its requests and their times in seconds since 1970. A float64 holds those to a
quarter of a microsecond, which is what its stamps are worth.

* Start, first token, last token and end are carried: `ttft_seconds`, `tpot_seconds`, `e2e_seconds`, the rates.
* Stamps of the tokens between are not in the file, so `itl_seconds` is absent.
* Requests that the end of the test cut off ("incomplete") are left out and counted; errored ones are errors.
* With a rate (constant, poisson) a request should have started at `targeted_start`, and waiting counts from there;
  guidellm's own numbers count from the start. In a closed loop both are the same. There and at full throughput
  `max_concurrency` is a limit of requests in flight, and no number of users.
* Requests that ended before `measure_start_time` or began at or after `measure_end_time` are warm-up and cool-down,
  which guidellm leaves out of its numbers too.
* With `sample_requests` the file holds some of the requests: their times hold, the rates are guidellm's averages.
* Without any request (`sample_requests` 0) the file holds averages only: one launch mean of each metric.
* Version, device and weights of the engine and the machine are absent. Lengths as asked are not read: the cell
  holds the medians of what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from enginecmp.errors import ResultsError
from enginecmp.format.records import Arrival
from enginecmp.importers.aiperf import refuse_twice
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import Averages, ImportedRequest, Launch, Load, Part, positive

NAME = "guidellm"
READS = "guidellm 0.4 to 0.8 (report versions 1 and 2)"

_OPEN_LOOP: Mapping[str, Arrival] = {"constant": "constant", "poisson": "poisson"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    return len(documents) == 1 and isinstance(documents[0], dict) and isinstance(documents[0].get("benchmarks"), list)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the benchmarks of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: no benchmark, or a key is missing or wrong.
    """
    report = Fields.of(documents[0], str(path))
    launch = [_part(benchmark, report) for benchmark in report.objects("benchmarks")]
    if not launch:
        msg = f"{path}: benchmarks: expected at least one, got none"
        raise ResultsError(msg)
    return [launch]


def _part(benchmark: Fields, report: Fields) -> Part:
    config = benchmark.nested("config")
    strategy = config.nested("strategy")
    kind = strategy.text("type_")
    told = benchmark.values.get("requests") is not None
    groups = benchmark.nested("requests") if told else Fields({}, f"{benchmark.where}: requests")
    succeeded = _group(groups, "successful")
    refuse_twice([fields.text("request_id") for fields in succeeded], groups.where)
    requests = [_finished(fields, kind in _OPEN_LOOP) for fields in succeeded]
    listed = len(requests)
    failed = [_failed(fields) for fields in _group(groups, "errored")]
    requests += [request for request in failed if request is not None]
    metrics = _Metrics(benchmark.maybe_object("metrics"))
    if not requests and not metrics.means():
        msg = f"{groups.where}: successful: expected requests or averages above zero, got neither"
        raise ResultsError(msg)
    requests = _phases(sorted(requests, key=lambda request: request.start_ns), benchmark)
    load = _load(kind, strategy)
    # A loop with a fixed number of streams is in the cell already; what else describes the load is a condition.
    named = {} if kind in ("synchronous", "concurrent") else {"strategy": kind}
    averages = _averages(benchmark, config, listed, metrics)
    of = f" of {averages.requests}" if averages and averages.requests else ""
    notes = []
    if averages and requests:
        notes.append(
            f"the file holds {listed} sampled requests{of}; rates are guidellm's own averages over all of them"
        )
    if asked := _untold_phases(benchmark, config):
        notes.append(f"{asked} was asked and the file does not tell when it was: those requests are compared too")
    return Part(
        cell=load.typical_cell(requests) if requests else load.cell(*metrics.lengths()),
        requests=requests,
        averages=averages,
        model=config.maybe_object("backend").text("model") or _asked_model(report),
        tool_version=report.maybe_object("metadata").text("guidellm_version"),
        conditions=named | load.conditions,
        left_out=len(_group(groups, "incomplete")) + failed.count(None),
        notes=notes,
    )


def _group(groups: Fields, key: str) -> list[Fields]:
    return list(groups.objects(key)) if key in groups.values else []


def _load(kind: str, strategy: Fields) -> Load:
    most = strategy.maybe_integer("max_concurrency")
    if kind == "synchronous":
        return Load(users=1)
    if kind == "concurrent":
        return Load(users=strategy.maybe_integer("streams") or most or 0)
    rate = strategy.maybe_number("rate")
    return Load(arrival=_OPEN_LOOP.get(kind, ""), rate=rate or None, most=most)


def _phases(requests: Sequence[ImportedRequest], benchmark: Fields) -> list[ImportedRequest]:
    """Return the requests with those outside of the measured window as warm-up."""
    times = benchmark.maybe_object("scheduler_metrics")
    window = [times.maybe_number(f"measure_{end}_time") for end in ("start", "end")]
    begin, end = (None if second is None else nanoseconds(second) for second in window)
    return [
        replace(request, phase="warmup")
        if (begin is not None and request.end_ns < begin) or (end is not None and request.start_ns >= end)
        else request
        for request in requests
    ]


def _untold_phases(benchmark: Fields, config: Fields) -> str:
    """Return which of warm-up and cool-down were asked for in a file that does not tell the measured window."""
    times = benchmark.maybe_object("scheduler_metrics").values
    asked = []
    for phase, end in (("warmup", "start"), ("cooldown", "end")):
        told = config.values.get(phase)
        told = told.get("percent") or told.get("value") if isinstance(told, dict) else told
        if told and times.get(f"measure_{end}_time") is None:
            asked.append(phase)
    return " and ".join(asked)


class _Metrics(NamedTuple):
    """The averages over the successful requests of a benchmark."""

    fields: Fields

    def mean(self, key: str) -> float | None:
        return self._successful(key).maybe_number("mean")

    def rates(self) -> dict[str, float]:
        return positive(
            throughput_tokens_per_second=self.mean("output_tokens_per_second"),
            requests_per_second=self.mean("requests_per_second"),
        )

    def means(self) -> dict[str, float]:
        ttft, gap = self.mean("time_to_first_token_ms"), self.mean("inter_token_latency_ms")
        times = positive(
            ttft_seconds=None if ttft is None else ttft / 1000,
            # guidellm's inter_token_latency is of a request: (last - first) / (tokens - 1).
            tpot_seconds=None if gap is None else gap / 1000,
            e2e_seconds=self.mean("request_latency"),
        )
        return times | self.rates()

    def lengths(self) -> tuple[int, int]:
        return round(self.mean("prompt_token_count") or 0), round(self.mean("output_token_count") or 0)

    def requests(self) -> int | None:
        """Return how many requests are behind them, as far as that is told."""
        totals = [self.fields.maybe_object("request_totals").maybe_integer("successful")]
        for key in ("request_latency", "time_to_first_token_ms"):
            totals.append(self._successful(key).maybe_integer("count"))
        return max((total for total in totals if total is not None), default=None)

    def _successful(self, key: str) -> Fields:
        return self.fields.maybe_object(key).maybe_object("successful")


def _averages(benchmark: Fields, config: Fields, listed: int, metrics: _Metrics) -> Averages | None:
    """Return the rates where the file holds some of the requests, all averages for none, None where it holds all."""
    made = benchmark.maybe_object("scheduler_metrics").maybe_object("requests_made").maybe_integer("successful")
    told = [count for count in (made, metrics.requests()) if count is not None]
    asked = config.maybe_integer("sample_requests")
    if not listed:
        means = metrics.means()
        return Averages(metrics=means, requests=max(told, default=0)) if means else None
    if (max(told) <= listed) if told else (asked is None or listed < asked):
        return None
    return Averages(metrics=metrics.rates(), requests=max(told, default=0))


def _finished(fields: Fields, open_loop: bool) -> ImportedRequest:
    times = fields.nested("info").nested("timings")
    start, end = nanoseconds(times.number("request_start")), nanoseconds(times.number("request_end"))
    chunks = times.maybe_integer(times.first("token_iterations", "iterations")) or 0
    tokens, prompt = _tokens(fields, "output"), _tokens(fields, "prompt")
    # Before 0.5 the names did not say of what.
    first = times.maybe_number(times.first("first_token_iteration", "first_iteration"))
    last = times.maybe_number(times.first("last_token_iteration", "last_iteration"))
    stamps = []
    if first is not None and tokens > 0:
        stamps.append(nanoseconds(first))
        # Of two tokens both stamps are known only if each had its own chunk.
        if last is not None and (tokens > 2 or (tokens == 2 and chunks == 2)):
            stamps.append(nanoseconds(last))
    targeted = times.maybe_number("targeted_start") if open_loop else None
    return ImportedRequest(
        start_ns=start,
        end_ns=end,
        prompt_tokens=prompt,
        output_tokens=tokens,
        token_ns=stamps,
        intended_ns=None if targeted is None else min(start, nanoseconds(targeted)),
    )


def _tokens(fields: Fields, which: str) -> int:
    """Return a count of tokens; some versions write it in the metrics of the request alone."""
    told = fields.maybe_object({"prompt": "input_metrics"}.get(which, "output_metrics"))
    if fields.values.get(f"{which}_tokens") is None and told.values.get("text_tokens") is not None:
        return told.integer("text_tokens")
    return fields.integer(f"{which}_tokens")


def _failed(fields: Fields) -> ImportedRequest | None:
    """Return a request that failed, None when it never started."""
    info = fields.nested("info")
    times = info.nested("timings")
    starts = [times.maybe_number(key) for key in ("request_start", "resolve_start")]
    start = next((second for second in starts if second is not None), None)
    if start is None:
        return None
    ends = [times.maybe_number(key) for key in ("request_end", "resolve_end")]
    end = next((second for second in ends if second is not None), start)
    return ImportedRequest(
        start_ns=nanoseconds(start),
        end_ns=nanoseconds(max(start, end)),
        prompt_tokens=fields.maybe_integer("prompt_tokens") or 0,
        output_tokens=fields.maybe_integer("output_tokens") or 0,
        status="error",
        error=info.text("error") or "errored",
    )


def _asked_model(report: Fields) -> str:
    # Version 2 says `config`, version 1 said `args`; an empty model means the server's first one.
    for key in ("config", "args"):
        asked = report.maybe_object(key)
        name = asked.maybe_object("backend").text("model") or asked.text("model")
        if name:
            return name
    return ""
