"""inference-perf: `per_request_lifecycle_metrics.json`, else `stage_N_` or `summary_lifecycle_metrics.json`.

* With one entry a request: start, end and `output_token_times` are on one clock. Every metric is carried;
  `itl_seconds` only of requests with a stamp for every token.
* The other files hold averages: one launch mean of each metric. A stage is a load of its own.
* The rate as asked is a condition; its pattern, the model, versions, device and machine are absent: --model names it.
* Lengths as asked are not read: the cell holds the medians (or the means) of what came.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import Averages, ImportedRequest, Launch, Load, Part, known_stamps, positive

NAME = "inference-perf"
READS = "inference-perf 0.1 to 0.5"

_METRICS = {
    "ttft_seconds": "time_to_first_token",
    "tpot_seconds": "time_per_output_token",
    "itl_seconds": "inter_token_latency",
    "e2e_seconds": "request_latency",
}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    if len(documents) != 1:
        return False
    document = documents[0]
    if isinstance(document, dict):
        return {"load_summary", "successes"} <= document.keys()
    keys = {"start_time", "end_time", "info", "error"}
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(e, dict) and keys <= e.keys() for e in document)
    )


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the requests or the averages of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    document = documents[0]
    if isinstance(document, dict):
        return [[_averages(Fields.of(document, str(path)))]]
    requests = [_request(Fields.of(entry, f"{path}: [{number}]")) for number, entry in enumerate(document)]
    requests.sort(key=lambda request: request.start_ns)
    return [[Part(cell=Load().typical_cell(requests), requests=requests)]]


def _request(fields: Fields) -> ImportedRequest:
    start, end = nanoseconds(fields.number("start_time")), nanoseconds(fields.number("end_time"))
    info = fields.maybe_object("info")
    # Since 0.3 what came stands apart from what was sent; the prompt's length is in both places.
    got = info.maybe_object("response_metrics") if "response_metrics" in info.values else info
    sent = info.maybe_object("request_metrics").maybe_object("text")
    prompt = (info if info.values.get("input_tokens") is not None else sent).maybe_integer("input_tokens")
    error = fields.values.get("error")
    if error:
        told = fields.nested("error")
        reason = told.text("error_msg") or told.text("error_type") or "errored"
        return ImportedRequest(
            start_ns=start, end_ns=end, prompt_tokens=prompt or 0, output_tokens=0, status="error", error=reason
        )
    tokens = got.integer("output_tokens")
    times = got.numbers("output_token_times") if got.values.get("output_token_times") is not None else []
    # A chunk of several tokens has one time, written once for each of them: then single gaps are not known.
    stamps = sorted({nanoseconds(second) for second in times})
    return ImportedRequest(
        start_ns=start,
        end_ns=max([end, *stamps[-1:]]),
        prompt_tokens=prompt or 0,
        output_tokens=tokens,
        token_ns=known_stamps(stamps, tokens),
    )


def _averages(fields: Fields) -> Part:
    asked, good = fields.nested("load_summary"), fields.nested("successes")
    latency, rates = good.maybe_object("latency"), good.maybe_object("throughput")
    told = {name: _mean(latency, key) for name, key in _METRICS.items()}
    load = Load(
        users=asked.maybe_integer("concurrency") or 0,
        rate=asked.maybe_number(asked.first("requested_rate", "requested_request_rate")),
    )
    failed = fields.maybe_object("failures").maybe_integer("count") or 0
    return Part(
        cell=load.cell(*(round(_mean(good, key) or 0) for key in ("prompt_len", "output_len"))),
        averages=Averages(
            metrics=positive(
                **told,
                throughput_tokens_per_second=rates.maybe_number("output_tokens_per_sec"),
                requests_per_second=rates.maybe_number("requests_per_sec"),
            ),
            requests=good.maybe_integer("count") or 0,
        ),
        conditions=load.conditions,
        notes=[f"{failed} requests failed and are in no average"] if failed else (),
    )


def _mean(fields: Fields, key: str) -> float | None:
    return fields.maybe_object(key).maybe_number("mean")
