"""llama-bench: `llama-bench -o json`, jsonl, md (its default), csv or sql.

JSON has one entry a test, with the duration of every repetition in `samples_ns`. No token has a stamp of its own, so:

* `e2e_seconds` is carried for every test: the duration.
* `throughput_tokens_per_second` is carried for tests that generate (tg, pg): generated tokens over the sum of
  durations. Repetitions are laid end to end, because the time between them is not told and not part of it.
* A prompt test (pp) ends with logits and no token: it stands in the cell (prompt, 0 output tokens), has
  `e2e_seconds` and nothing else. Its rate is prompt tokens over that; the ratio of two engines is the same number.
* A generation test (tg) starts from an empty prompt: the cell (0, output tokens).
* `ttft_seconds`, `itl_seconds`, `tpot_seconds`, `prefill_tokens_per_second` and `decode_tokens_per_second` are
  absent. Sampling and tokenization are outside of every duration.

The other forms hold averages only, one launch mean a test: csv and sql the mean duration, md the mean rate, of which
the same two metrics are taken (the mean of rates is above the rate of the means by the squared spread).

The depth of the KV cache (`n_depth`) was filled outside of the measured time, which no cell can say. It is a
condition of the run: one run holds one depth. Of several models in a file one must be chosen. Keys that are no
settings known here are no settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.format.records import Cell
from enginecmp.format.text import plain
from enginecmp.importers.fields import LARGEST_STAMP, Fields
from enginecmp.importers.names import file_name
from enginecmp.importers.parts import Averages, ImportedRequest, Launch, Part, positive

NAME = "llama-bench"
READS = "llama-bench of build 1500 (2023) on"

_SETTINGS = frozenset(
    {
        "n_batch",
        "n_ubatch",
        "n_threads",
        "n_threads_batch",
        "cpu_mask",
        "cpu_strict",
        "poll",
        "type_k",
        "type_v",
        "n_gpu_layers",
        "n_cpu_moe",
        "split_mode",
        "main_gpu",
        "no_kv_offload",
        "flash_attn",
        "devices",
        "tensor_split",
        "tensor_buft_overrides",
        "use_mmap",
        "use_direct_io",
        "load_mode",
        "lazy_mode",
        "embeddings",
        "no_op_offload",
        "no_host",
        "repack",
        "moe_cache",
        "fit_target",
        "fit_min_ctx",
        "n_gen_warmup",
        "rpc_servers",
        "numa",
        # Of builds before 2024.
        "f16_kv",
        "mul_mat_q",
        "low_vram",
    }
)
_OTHERS = frozenset(
    {
        *("n_prompt", "n_gen", "n_depth", "test_time"),
        *("avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"),
        *("build_commit", "build_number", "cpu_info", "gpu_info", "backends"),
        *("model_filename", "model_type", "model_size", "model_n_params"),
        # Builds before 2025 told the backend as one truth each.
        *("cuda", "opencl", "vulkan", "kompute", "metal", "sycl", "rpc", "gpu_blas", "blas"),
    }
)
_DEVICES = {"CUDA": "cuda", "ROCm": "rocm", "HIP": "rocm", "Metal": "metal", "MTL": "metal", "Vulkan": "vulkan"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    keys = {"n_prompt", "n_gen"}
    measured = {"samples_ns", "avg_ns", "avg_ts"}
    entries = [entry for tests in _launches(documents) for entry in tests]
    return bool(entries) and all(
        isinstance(entry, dict) and keys <= entry.keys() and measured & entry.keys() for entry in entries
    )


def _launches(documents: Sequence[Any]) -> list[list[Any]]:
    """Return the tests of each process: a list or a table of its own, or all lines together."""
    lists = [document for document in documents if isinstance(document, list)]
    lines = [document for document in documents if not isinstance(document, list)]
    return [*lists, lines] if lines else lists


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the tests of a file, a launch for every process.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    launches = []
    number = 0
    for tests in _launches(documents):
        clock = 0
        launch: Launch = []
        for entry in tests:
            part = _part(Fields.of(entry, f"{path}: [{number}]"), clock)
            clock = part.requests[-1].end_ns if part.requests else clock
            launch.append(part)
            number += 1
        launches.append(launch)
    return launches


def _part(fields: Fields, clock: int) -> Part:
    prompt, output = fields.integer("n_prompt"), fields.integer("n_gen")
    cell = Cell(prompt_tokens=prompt, output_tokens=output, concurrency=1)
    requests = _repetitions(fields, cell, clock)
    build = fields.text("build_number")
    commit = fields.text("build_commit")
    version = f"{build} ({commit})" if build and commit else build or commit
    machine = {"cpu": fields.text("cpu_info"), "gpu": fields.text("gpu_info")}
    unknown = sorted(fields.values.keys() - _SETTINGS - _OTHERS)
    name, kind = fields.text("model_filename"), fields.text("model_type")
    return Part(
        cell=cell,
        requests=requests,
        averages=None if requests else _averages(fields, cell),
        model=file_name(name) or kind,
        version=version,
        # llama-bench comes with the engine: they share their build.
        tool_version=version,
        device=_device(fields.text("backends")),
        conditions={"n_depth": fields.maybe_integer("n_depth") or 0},
        options={key: _setting(fields, key) for key in sorted(_SETTINGS & fields.values.keys())},
        machine={key: value for key, value in machine.items() if value},
        weights={
            "parameters": fields.maybe_stamp("model_n_params") or 0,
            "bytes": fields.maybe_stamp("model_size") or 0,
        },
        choices={"model_filename": name, "model_type": kind},
        notes=[f"keys that are no settings known here are not read: {plain(', '.join(unknown))}"] if unknown else (),
    )


def _setting(fields: Fields, key: str) -> str | int | bool:
    value = fields.values[key]
    return value if isinstance(value, int) and abs(value) < LARGEST_STAMP else fields.text(key)


def _repetitions(fields: Fields, cell: Cell, clock: int) -> list[ImportedRequest]:
    if "samples_ns" not in fields.values and ({"avg_ns", "avg_ts"} & fields.values.keys()):
        return []
    durations = [fields.stamp_at("samples_ns", i) for i in range(len(fields.entries("samples_ns")))]
    if not durations:
        msg = f"{fields.where}: samples_ns: expected one duration a repetition, got none"
        raise ResultsError(msg)
    requests = []
    for duration in durations:
        requests.append(
            ImportedRequest(
                start_ns=clock,
                end_ns=clock + duration,
                prompt_tokens=cell.prompt_tokens,
                output_tokens=cell.output_tokens,
            )
        )
        clock += duration
    return requests


def _averages(fields: Fields, cell: Cell) -> Averages:
    seconds = (fields.maybe_number("avg_ns") or 0) / 1e9
    rate = fields.maybe_number("avg_ts") or 0
    tokens = cell.prompt_tokens + cell.output_tokens
    if not seconds and rate:
        seconds = tokens / rate
    throughput = cell.output_tokens / seconds if seconds else None
    return Averages(metrics=positive(e2e_seconds=seconds, throughput_tokens_per_second=throughput))


def _device(backends: str) -> str:
    # "CUDA", "CUDA,BLAS" or "CPU": the accelerator is what it ran on.
    for backend in backends.split(","):
        if backend in _DEVICES:
            return _DEVICES[backend]
    return "cpu" if backends in ("CPU", "BLAS", "CPU,BLAS", "BLAS,CPU") else backends.lower()
