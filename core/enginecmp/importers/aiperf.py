"""aiperf: `profile_export.jsonl`, one line a request, and `profile_export_aiperf.json` beside it if it is there.

* Start: `request_start_ns` (`timestamp_ns` before 0.2). First stamp: start + time_to_first_token (`ttft` then); further
  ones from the gaps in inter_chunk_latency. Without them (they are not exported for short answers) the last stamp is
  the end, which is how aiperf itself defines its inter_token_latency, and single gaps are absent.
* End: start + request_latency, else `request_end_ns`.
* Without streaming no token has a stamp: `e2e_seconds` and `throughput_tokens_per_second` are all there is.
* Warm-up requests stay apart; failed and cancelled ones are errors.
* Model, concurrency, request rate and aiperf's version come from the JSON beside it. Without that file they are
  absent, the concurrency is 0 (none told), and --model must name the model.
* Version, device and weights of the engine and the machine are absent. Lengths as asked are not read: the cell
  holds the medians of what came.
* `profile_export_aiperf.json` alone is read as the averages that it holds, like genai-perf's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.format.records import SamplePhase
from enginecmp.importers import genai_perf
from enginecmp.importers.documents import read_documents
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.parts import ImportedRequest, Launch, Part, known_stamps

NAME = "aiperf"
READS = "aiperf 0.1 to 0.8"

SUMMARY = "profile_export_aiperf.json"

_PHASES: Mapping[str, SamplePhase] = {"profiling": "measure", "warmup": "warmup"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    if genai_perf.is_summary(documents):
        return "aiperf_version" in documents[0]
    return all(isinstance(document, dict) and {"metadata", "metrics"} <= document.keys() for document in documents)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the requests of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: a key is missing or wrong, or a request stands in it twice.
    """
    if genai_perf.is_summary(documents):
        return genai_perf.read(path, documents)
    lines = [Fields.of(document, f"{path}, line {number}") for number, document in enumerate(documents, start=1)]
    refuse_twice([fields.nested("metadata").text("x_request_id") for fields in lines], str(path))
    requests = [_request(fields) for fields in lines]
    summary = path.with_name(SUMMARY)
    about = Fields.of(read_documents(summary)[0] if summary.is_file() else {}, str(summary))
    config = about.maybe_object("input_config")
    load = genai_perf.load_of(config)
    return [
        [
            Part(
                cell=load.typical_cell(requests),
                requests=requests,
                model=genai_perf.model_of(config),
                tool_version=about.text("aiperf_version"),
                conditions=load.conditions,
            )
        ]
    ]


def refuse_twice(names: Sequence[str], where: str) -> None:
    """Refuse requests that stand in a file twice: they would count twice.

    Raises:
        ResultsError: one does.
    """
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if name and seen.setdefault(name, number) != number:
            msg = f"{where}: request {number} is request {seen[name]} again ('{name}'): it would count twice"
            raise ResultsError(msg)


def _request(fields: Fields) -> ImportedRequest:
    metadata, metrics = fields.nested("metadata"), fields.maybe_object("metrics")
    phase = metadata.text(metadata.first("benchmark_phase", "credit_phase")) or "profiling"
    if phase not in _PHASES:
        metadata.refuse("benchmark_phase", "profiling or warmup", phase)
    start = metadata.stamp(metadata.first("request_start_ns", "timestamp_ns"))
    error = fields.values.get("error")
    if error or metadata.values.get("was_cancelled"):
        told = Fields.of(error, f"{fields.where}: error").text("message") if error else "cancelled"
        return ImportedRequest(
            start_ns=start,
            end_ns=max(start, metadata.maybe_stamp("request_end_ns") or start),
            prompt_tokens=round(_value(metrics, "error_isl") or _value(metrics, "input_sequence_length") or 0),
            output_tokens=0,
            status="error",
            error=told,
            phase=_PHASES[phase],
        )
    tokens = metrics.nested("output_sequence_length").integer("value")
    latency = _seconds(metrics, "request_latency")
    end = metadata.stamp("request_end_ns") if not latency else start + nanoseconds(latency[0])
    stamps = _stamps(metrics, start, end, tokens)
    return ImportedRequest(
        start_ns=start,
        # Milliseconds were rounded when they were written: the sum of the gaps may pass the latency by some ns.
        end_ns=max([end, *stamps[-1:]]),
        prompt_tokens=metrics.nested("input_sequence_length").integer("value"),
        output_tokens=tokens,
        token_ns=stamps,
        phase=_PHASES[phase],
    )


def _stamps(metrics: Fields, start: int, end: int, tokens: int) -> list[int]:
    first = _seconds(metrics, metrics.first("time_to_first_token", "ttft"))
    if not first:
        return []
    gaps = _seconds(metrics, "inter_chunk_latency")
    if gaps:
        return known_stamps([start + nanoseconds(s) for s in accumulate(gaps, initial=first[0])], tokens)
    begin = start + nanoseconds(first[0])
    return [begin, max(begin, end)] if tokens > 2 else [begin]


def _seconds(metrics: Fields, name: str) -> list[float]:
    """Return a metric in seconds, one value or many; nothing where it is not there."""
    if metrics.values.get(name) is None:
        return []
    metric = metrics.nested(name)
    value = metric.values.get("value")
    values = metric.numbers("value") if isinstance(value, list) else [metric.number("value")]
    return [number * genai_perf.seconds_in(metric) for number in values]


def _value(metrics: Fields, name: str) -> float | None:
    return metrics.maybe_object(name).maybe_integer("value")
