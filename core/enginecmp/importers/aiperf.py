"""aiperf: `profile_export.jsonl`, one line a request, and `profile_export_aiperf.json` beside it if it is there.

* Start: `request_start_ns`. First stamp: start + time_to_first_token; further ones from the gaps in
  inter_chunk_latency. Without them (they are not exported for short answers) the last stamp is the end, which is
  how aiperf itself defines its inter_token_latency, and single gaps are absent.
* End: start + request_latency, else `request_end_ns`.
* Without streaming no token has a stamp: `e2e_seconds` and `throughput_tokens_per_second` are all there is.
* Warm-up requests stay apart; failed and cancelled ones are errors.
* Model, concurrency, request rate and aiperf's version come from the JSON beside it. Without that file they are
  absent, the concurrency is 0 (none told), and --model must name the model.
* Version, device and weights of the engine and the machine are absent. Lengths as asked are not read: the cell
  holds the medians of what came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.importers.fields import Fields, nanoseconds, read_documents
from enginecmp.importers.parts import UNLIMITED, ImportedRequest, Launch, Part, known_stamps, typical_cell
from enginecmp.types import Phase

NAME = "aiperf"

SUMMARY = "profile_export_aiperf.json"

_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
_PHASES: Mapping[str, Phase] = {"profiling": "measure", "warmup": "warmup"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    if not all(isinstance(document, dict) for document in documents):
        return False
    records = all({"metadata", "metrics"} <= document.keys() for document in documents)
    return records or {"input_config", "request_latency"} <= documents[0].keys()


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the requests of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: it holds averages only, or a key is missing or wrong.
    """
    if "metadata" not in documents[0]:
        msg = f"{path}: holds averages only; give the profile_export.jsonl beside it"
        raise ResultsError(msg)
    requests = [
        _request(Fields.of(document, f"{path}, line {number}")) for number, document in enumerate(documents, start=1)
    ]
    summary = path.with_name(SUMMARY)
    about = Fields.of(read_documents(summary)[0], str(summary)) if summary.is_file() else Fields({}, str(summary))
    config = about.maybe_object("input_config")
    load = _load(config)
    concurrency = load.maybe_integer("concurrency")
    rate = load.maybe_number("request_rate") or load.maybe_number("rate")
    return [
        [
            Part(
                cell=typical_cell(requests, UNLIMITED if concurrency is None else concurrency),
                requests=requests,
                model=_model(config),
                tool_version=about.text("aiperf_version"),
                conditions={} if rate is None else {"request_rate": rate},
            )
        ]
    ]


def _request(fields: Fields) -> ImportedRequest:
    metadata, metrics = fields.nested("metadata"), fields.maybe_object("metrics")
    phase = metadata.text("benchmark_phase") or "profiling"
    if phase not in _PHASES:
        metadata.refuse("benchmark_phase", "profiling or warmup", phase)
    start = metadata.integer("request_start_ns")
    error = fields.values.get("error")
    if error or metadata.values.get("was_cancelled"):
        told = Fields.of(error, f"{fields.where}: error").text("message") if error else "cancelled"
        return ImportedRequest(
            start_ns=start,
            end_ns=max(start, metadata.maybe_integer("request_end_ns") or start),
            prompt_tokens=round(_value(metrics, "error_isl") or _value(metrics, "input_sequence_length") or 0),
            output_tokens=0,
            status="error",
            error=told,
            phase=_PHASES[phase],
        )
    tokens = metrics.nested("output_sequence_length").integer("value")
    latency = _seconds(metrics, "request_latency")
    end = metadata.integer("request_end_ns") if not latency else start + nanoseconds(latency[0])
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
    first = _seconds(metrics, "time_to_first_token")
    if not first:
        return []
    gaps = _seconds(metrics, "inter_chunk_latency")
    if gaps:
        return known_stamps([start + nanoseconds(s) for s in accumulate(gaps, initial=first[0])], tokens)
    begin = start + nanoseconds(first[0])
    return [begin, max(begin, end)] if tokens > 2 else [begin]


def _seconds(metrics: Fields, name: str) -> list[float]:
    """Return a metric in seconds, one value or many; nothing where it is not there."""
    if name not in metrics.values:
        return []
    metric = metrics.nested(name)
    unit = metric.text("unit")
    if unit not in _SECONDS:
        metric.refuse("unit", f"one of {', '.join(_SECONDS)}", unit)
    value = metric.values.get("value")
    values = metric.numbers("value") if isinstance(value, list) else [metric.number("value")]
    return [number * _SECONDS[unit] for number in values]


def _value(metrics: Fields, name: str) -> float | None:
    return metrics.maybe_object(name).maybe_number("value")


def _load(config: Fields) -> Fields:
    """Return the load: `loadgen` up to 0.7, the phase that is not left out of the results later."""
    phases = config.values.get("phases")
    if isinstance(phases, dict):
        phases = [{"name": name, **phase} for name, phase in phases.items() if isinstance(phase, dict)]
    if isinstance(phases, list):
        for phase in phases:
            if isinstance(phase, dict) and phase.get("name") != "warmup" and not phase.get("exclude_from_results"):
                return Fields(phase, f"{config.where}: phases")
    return config.maybe_object("loadgen")


def _model(config: Fields) -> str:
    """Return the model: `endpoint.model_names` up to 0.7, `models.items` later."""
    names = config.maybe_object("endpoint").values.get("model_names")
    if not names:
        items = config.maybe_object("models").values.get("items")
        names = [item.get("name") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return "+".join(str(name) for name in names) if isinstance(names, list) else ""
