"""vLLM: `vllm bench serve --save-result`, also as lists that `vllm bench sweep` writes and with --append-result.

With --save-detailed there are lists with one entry a request: `ttfts` and `itls` in seconds, `input_lens`,
`output_lens`, `errors` and, since vLLM 0.11, `start_times`. First stamp: start + ttft; every further one: the one
before + its entry in `itls`, which are gaps between chunks. The end is the last chunk, as in vLLM's own latency.

* Every metric is carried; `itl_seconds` only of requests with as many chunks as tokens.
* Without `start_times` requests are laid end to end: their own times hold, and the rates are vLLM's averages.
* Without --save-detailed a file holds averages only: one launch mean of each metric. Its `itl_seconds` is the mean gap
  between chunks.
* `e2e_seconds` and `ttft_seconds` start when the request was sent: the wait for the client's own `max_concurrency`
  and for a late sender is outside, as it is in vLLM's numbers.
* At an infinite rate `max_concurrency` is a number of users. With a request rate it is a limit.
* When a failed request ended is not told; its end equals its start, and it counts in nothing.
* Prompt and output lengths as asked are not in the file: the cell holds the medians (or the means) of what came.
* Version of engine and tool, device, machine and weights are absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from enginecmp.format.records import Arrival
from enginecmp.format.text import plain
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import Averages, ImportedRequest, Launch, Load, Part, known_stamps, positive

NAME = "vllm"
READS = "vLLM 0.6 to 0.12"

_RAMP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    results = flat(documents)
    keys = {"model_id", "request_throughput", "duration"}
    return bool(results) and all(isinstance(result, dict) and keys <= result.keys() for result in results)


def flat(documents: Sequence[Any]) -> list[Any]:
    """Return the results of a file: its values, or the members of its lists."""
    return [result for document in documents for result in (document if isinstance(document, list) else [document])]


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the results of a file, a launch each.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    results = flat(documents)
    several = len(results) > 1
    return [
        [_part(Fields.of(result, f"{path}: result {number}" if several else str(path)))]
        for number, result in enumerate(results, start=1)
    ]


def _part(fields: Fields) -> Part:
    load = _load(fields)
    averages = Averages(
        metrics=serving_averages(fields, e2e="mean_e2el_ms"), requests=fields.maybe_integer("completed") or 0
    )
    requests = detailed_requests(fields)
    return Part(
        cell=load.typical_cell(requests) if requests else load.cell(*mean_lengths(fields)),
        requests=requests,
        averages=left_to_averages(fields, averages),
        model=fields.text("model_id"),
        conditions=load.conditions | {key: fields.text(key) for key in _RAMP if fields.values.get(key) is not None},
        options={"backend": fields.text("backend") or fields.text("endpoint_type")},
    )


def detailed_requests(fields: Fields) -> list[ImportedRequest]:
    """Return the requests of a result with lists of details; none where it has only averages.

    Raises:
        ResultsError: a list is missing, too short, or holds what is no time or count.
    """
    if "ttfts" not in fields.values:
        return []
    first = fields.entries("ttfts")
    n = len(first)
    prompts, outputs = fields.integers("input_lens", n), fields.integers("output_lens", n)
    starts = fields.numbers("start_times", n) if told_starts(fields) else None
    errors = fields.entries("errors", n) if fields.values.get("errors") is not None else [None] * n
    gaps = fields.entries("itls", n)
    requests = []
    clock = 0
    for i in range(n):
        start = clock if starts is None else nanoseconds(starts[i])
        # A request that never produced a token has no ttft, an error, or both.
        if errors[i] or outputs[i] == 0:
            requests.append(
                ImportedRequest(
                    start_ns=start,
                    end_ns=start,
                    prompt_tokens=prompts[i],
                    output_tokens=0,
                    status="error",
                    error=_last_line(errors[i]) or "no token came",
                )
            )
            continue
        begin = fields.number_at("ttfts", i)
        later = Fields({"itls": gaps[i]}, f"{fields.where}: itls[{i}]").numbers("itls")
        stamps = [start + nanoseconds(second) for second in accumulate(later, initial=begin)]
        clock = stamps[-1]
        requests.append(
            ImportedRequest(
                start_ns=start,
                end_ns=stamps[-1],
                prompt_tokens=prompts[i],
                output_tokens=outputs[i],
                token_ns=known_stamps(stamps, outputs[i]),
            )
        )
    return requests


def told_starts(fields: Fields) -> bool:
    """Say whether a result holds when its requests started."""
    return fields.values.get("start_times") is not None


def left_to_averages(fields: Fields, averages: Averages) -> Averages | None:
    """Return what must be taken from the averages: all without details, the rates without starts, else nothing."""
    if "ttfts" not in fields.values:
        return averages
    if told_starts(fields):
        return None
    rates = {name: value for name, value in averages.metrics.items() if "_per_second" in name}
    return Averages(metrics=rates, requests=averages.requests)


def serving_averages(fields: Fields, e2e: str) -> dict[str, float]:
    """Return the means of a result in our units; those that were not measured are left out."""
    thousandths = {"ttft_seconds": "mean_ttft_ms", "tpot_seconds": "mean_tpot_ms", "itl_seconds": "mean_itl_ms"}
    told = {name: fields.maybe_number(key) for name, key in (thousandths | {"e2e_seconds": e2e}).items()}
    return positive(
        **{name: None if value is None else value / 1000 for name, value in told.items()},
        throughput_tokens_per_second=fields.maybe_number("output_throughput"),
        requests_per_second=fields.maybe_number("request_throughput"),
    )


def mean_lengths(fields: Fields) -> tuple[int, int]:
    """Return prompt and output tokens of a request in the mean."""
    completed = max(1, fields.integer("completed"))
    prompts, outputs = fields.stamp("total_input_tokens"), fields.stamp("total_output_tokens")
    return round(prompts / completed), round(outputs / completed)


def serving_load(fields: Fields, arrival: Arrival) -> Load:
    """Return the load of a result: users at an infinite rate, else an open loop with a limit."""
    rate, most = fields.values.get("request_rate"), fields.maybe_integer("max_concurrency")
    if rate in (None, "inf", float("inf")):
        # Fewer requests than users: no more were ever in flight.
        asked = fields.maybe_integer("num_prompts")
        return Load(users=0 if most is None else min(most, asked or most))
    if rate == "trace":
        return Load(most=most)
    return Load(arrival=arrival, rate=fields.number("request_rate"), most=most)


def _load(fields: Fields) -> Load:
    return serving_load(fields, "poisson" if fields.maybe_number("burstiness") in (None, 1) else "gamma")


def _last_line(error: object) -> str:
    # vLLM stores whole tracebacks; their last line says what happened.
    lines = str(error or "").strip().splitlines()
    return plain(lines[-1]) if lines else ""
