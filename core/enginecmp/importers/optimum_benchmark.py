"""optimum-benchmark: `benchmark.json`, or `benchmark_report.json` with `benchmark_config.json` beside it.

Text generation in the process of the library, one call after the other; times of every call are in the file.

* `per_token` backends tell prefill and decode of each call: first stamp after prefill, last one after decode.
  `ttft_seconds`, `tpot_seconds`, `e2e_seconds` and the rates are carried; single gaps are not told apart by call.
* Other backends time prefill in calls of their own: `e2e_seconds` and the rates are of the whole calls,
  `ttft_seconds` is the mean of the others.
* Calls are laid end to end. A batch of n is n requests at once that start and end together.
* Without the configuration lengths and batch are not told, hence no rates: times alone, `tpot_seconds` as the mean of
  `per_token`.
* `load_model` is the phase load; warm-up calls are not in the file.
* Model, backend and its version, device, CPU and GPU come from the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from enginecmp.errors import ResultsError
from enginecmp.format.records import Cell
from enginecmp.format.text import plain
from enginecmp.importers.documents import read_documents
from enginecmp.importers.fields import Fields, nanoseconds
from enginecmp.importers.names import model_name
from enginecmp.importers.parts import Averages, ImportedRequest, Launch, Part, positive

NAME = "optimum-benchmark"
READS = "optimum-benchmark 0.2 to 0.6"

CONFIG = "benchmark_config.json"

MOST_CALLS = 1_000_000
"""Calls, times the sequences of each, of which a file is read."""

_SETTINGS = (
    "torch_dtype",
    "dtype",
    "quantization_scheme",
    "attn_implementation",
    "torch_compile",
    "inter_op_num_threads",
    "intra_op_num_threads",
    "cache_implementation",
)


class Asked(NamedTuple):
    """Tokens and sequences of a call; 0 where they are not told."""

    prompt: int = 0
    output: int = 0
    batch: int = 0


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    document = documents[0]
    if len(documents) != 1 or not isinstance(document, dict):
        return False
    if {"config", "report"} <= document.keys():
        return isinstance(document["config"], dict) and {"backend", "scenario"} <= document["config"].keys()
    targets = [document.get(key) for key in ("generate", "prefill", "decode", "forward")]
    return any(isinstance(target, dict) and "latency" in target for target in targets)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the calls of a file: one process, hence one launch.

    Raises:
        ResultsError: it is not of text generation, its configuration is not beside it, or a key is missing or wrong.
    """
    document = Fields.of(documents[0], str(path))
    report = document.nested("report") if "report" in document.values else document
    if "generate" not in report.values:
        msg = f"{report.where}: expected the timings of text generation ('generate'), got {', '.join(report.values)}"
        raise ResultsError(msg)
    return [[_part(report, _config(path, document))]]


def _config(path: Path, document: Fields) -> Fields | None:
    if "config" in document.values:
        return document.nested("config")
    beside = path.with_name(CONFIG)
    return Fields.of(read_documents(beside)[0], str(beside)) if beside.is_file() else None


def _part(report: Fields, config: Fields | None) -> Part:
    whole, first, rest = (_times(report, target) for target in ("generate", "prefill", "decode"))
    asked = Asked() if config is None else _asked(config.nested("scenario"))
    if not sum(whole) > 0 or asked.batch * len(whole) > MOST_CALLS:
        msg = f"{report.where}: generate: expected 1 to {MOST_CALLS} calls that took time, got {len(whole)}"
        raise ResultsError(msg)
    # Of the same calls only where the tokens of each call were timed.
    gaps = _times(report, "per_token")
    same = bool(gaps) and len(first) == len(rest) == len(whole)
    requests = _load(report)
    clock = requests[-1].end_ns if requests else 0
    for number, seconds in enumerate(whole):
        stamps = []
        if same and asked.output:
            stamps = [clock + nanoseconds(first[number])]
            if asked.output > 2:
                stamps.append(clock + nanoseconds(first[number] + rest[number]))
        end = max([clock + nanoseconds(seconds), *stamps])
        call = ImportedRequest(
            start_ns=clock, end_ns=end, prompt_tokens=asked.prompt, output_tokens=asked.output, token_ns=stamps
        )
        requests += [call] * (asked.batch or 1)
        clock = end
    averages = None
    if first and not (same and asked.output):
        told = positive(
            ttft_seconds=sum(first) / len(first),
            tpot_seconds=sum(gaps) / len(gaps) if gaps else None,
            throughput_tokens_per_second=asked.batch * asked.output * len(whole) / sum(whole),
            requests_per_second=asked.batch * len(whole) / sum(whole),
        )
        averages = Averages(metrics=told, requests=len(first))
    about: dict[str, Any] = {} if config is None else _about(config)
    note = f"what was asked is not told: put {CONFIG} beside the file, or give benchmark.json"
    return Part(
        cell=Cell(asked.prompt, asked.output, asked.batch),
        requests=requests,
        averages=averages,
        notes=[note] if config is None else (),
        **about,
    )


def _load(report: Fields) -> list[ImportedRequest]:
    seconds = _times(report, report.first("load_model", "load"))[:1]
    return [
        ImportedRequest(start_ns=0, end_ns=nanoseconds(spent), prompt_tokens=0, output_tokens=0, phase="load")
        for spent in seconds
    ]


def _asked(scenario: Fields) -> Asked:
    shapes, generate = scenario.nested("input_shapes"), scenario.maybe_object("generate_kwargs")
    places = ((generate, "max_new_tokens"), (scenario, "new_tokens"))
    told = [place.integer(key) for place, key in places if place.values.get(key) is not None]
    # 100 is the tool's own default.
    return Asked(
        shapes.integer("sequence_length"), told[0] if told else 100, max(1, shapes.maybe_integer("batch_size") or 1)
    )


def _about(config: Fields) -> dict[str, Any]:
    """Return the fields of a part that the configuration tells."""
    backend, environment = config.nested("backend"), config.maybe_object("environment")
    gpus = environment.values.get("gpu")
    gpu = plain(", ".join(map(str, gpus))) if isinstance(gpus, list) else environment.text("gpu")
    machine = {"cpu": environment.text("cpu").strip(), "gpu": gpu}
    told = {key: backend.values.get(key) for key in _SETTINGS}
    return {
        "model": model_name(backend.text("model")),
        "version": f"{backend.text('name')} {backend.text('version')}".strip(),
        "device": backend.text("device"),
        "tool_version": environment.text("optimum_benchmark_version"),
        "options": {key: backend.text(key) for key, value in told.items() if isinstance(value, str | int)},
        "machine": {key: value for key, value in machine.items() if value},
    }


def _times(report: Fields, target: str) -> list[float]:
    """Return the seconds of every call of a target; nothing where it was not measured."""
    latency = report.maybe_object(target).maybe_object("latency")
    if not latency.values:
        return []
    if latency.text("unit") not in ("s", ""):
        latency.refuse("unit", "s", latency.text("unit"))
    return latency.numbers("values")
