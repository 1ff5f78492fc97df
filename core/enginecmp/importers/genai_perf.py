"""genai-perf and the summary of aiperf: `profile_export_genai_perf.json`, `profile_export_aiperf.json`.

* They hold averages only: one launch mean of each metric.
* Their `inter_token_latency` is (latency - time to first token) / (tokens - 1) of a request: our `tpot_seconds`.
* `concurrency` is a number of users; with a request rate it is a limit.
* Model and load come from `input_config`; version, device, machine and weights are absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.format.records import Arrival
from enginecmp.format.text import plain
from enginecmp.importers.fields import Fields
from enginecmp.importers.parts import Averages, Launch, Load, Part, positive

NAME = "genai-perf"
READS = "genai-perf 0.0.5 to 0.0.16 and aiperf 0.1 to 0.8"

SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "sec": 1.0, "s": 1.0}
"""Seconds in a unit as genai-perf and aiperf write it."""

_TIMES = {
    "ttft_seconds": "time_to_first_token",
    "tpot_seconds": "inter_token_latency",
    "e2e_seconds": "request_latency",
}
_RATES = {"throughput_tokens_per_second": "output_token_throughput", "requests_per_second": "request_throughput"}
_ARRIVALS: Mapping[str, Arrival] = {"poisson": "poisson", "constant": "constant", "gamma": "gamma"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    return is_summary(documents) and "aiperf_version" not in documents[0]


def is_summary(documents: Sequence[Any]) -> bool:
    """Say whether a file holds the averages of genai-perf or aiperf, which have one form."""
    document = documents[0]
    return len(documents) == 1 and isinstance(document, dict) and {"input_config", "request_latency"} <= document.keys()


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the averages of a file: one session against one server, hence one launch.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    fields = Fields.of(documents[0], str(path))
    config = fields.maybe_object("input_config")
    load = load_of(config)
    lengths = [_mean(fields, f"{which}_sequence_length") for which in ("input", "output")]
    prompt, output = (round(length or 0) for length in lengths)
    metrics = {name: _seconds(fields, key) for name, key in _TIMES.items()}
    metrics |= {name: _mean(fields, key) for name, key in _RATES.items()}
    requests = _mean(fields, "request_count") or config.maybe_number("request_count")
    return [
        [
            Part(
                cell=load.cell(prompt, output),
                averages=Averages(metrics=positive(**metrics), requests=round(requests or 0)),
                model=model_of(config),
                tool_version=fields.text("aiperf_version"),
                conditions=load.conditions,
                options={"backend": config.text("backend")} if isinstance(config.values.get("backend"), str) else {},
            )
        ]
    ]


def _mean(fields: Fields, key: str) -> float | None:
    return fields.maybe_object(key).maybe_number("avg")


def _seconds(fields: Fields, key: str) -> float | None:
    metric = fields.maybe_object(key)
    mean = metric.maybe_number("avg")
    return None if mean is None else mean * seconds_in(metric)


def seconds_in(metric: Fields) -> float:
    """Return the seconds in a metric's unit."""
    unit = metric.text("unit")
    if unit not in SECONDS:
        metric.refuse("unit", f"one of {', '.join(SECONDS)}", unit)
    return SECONDS[unit]


def load_of(config: Fields) -> Load:
    """Return the load: of genai-perf, of aiperf up to 0.7 (`loadgen`) and later (the phase that counts)."""
    told = _phase(config)
    stimulus = config.maybe_object("perf_analyzer").maybe_object("stimulus")
    rates = [told.maybe_number("request_rate"), told.maybe_number("rate"), stimulus.maybe_number("request_rate")]
    rate = next((number for number in rates if number), None)
    users = told.maybe_integer("concurrency") or stimulus.maybe_integer("concurrency")
    if rate is None:
        return Load(users=users or 0)
    patterns = [told.values.get(key) for key in ("arrival_pattern", "request_rate_mode", "type")]
    known = [_ARRIVALS[pattern] for pattern in patterns if isinstance(pattern, str) and pattern in _ARRIVALS]
    return Load(arrival=known[0] if known else "", rate=rate, most=users)


def _phase(config: Fields) -> Fields:
    phases = config.values.get("phases")
    if isinstance(phases, dict):
        phases = [{"name": name, **phase} for name, phase in phases.items() if isinstance(phase, dict)]
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict) and phase.get("name") != "warmup" and not phase.get("exclude_from_results"):
            return Fields(phase, f"{config.where}: phases")
    return config.maybe_object("loadgen") if "loadgen" in config.values else config


def model_of(config: Fields) -> str:
    """Return the model, "" where it is not told: every place in which a version wrote it."""
    endpoint = config.maybe_object("endpoint")
    for names in (endpoint.values.get("model_names"), config.values.get("model_names"), config.values.get("model")):
        if names:
            return _one_model(config, names if isinstance(names, list) else [names])
    items = config.maybe_object("models").values.get("items")
    named = [item.get("name") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    return _one_model(config, named)


def _one_model(config: Fields, names: Sequence[Any]) -> str:
    told = list(dict.fromkeys(Fields({"model": name}, config.where).text("model") for name in names))
    if len(told) > 1:
        msg = f"{config.where}: expected one model, got {plain(', '.join(told))}: whose a request was is not told"
        raise ResultsError(msg)
    return told[0] if told else ""
