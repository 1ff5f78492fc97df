"""llama-bench: `llama-bench -o json` (or jsonl).

One entry a test, with the duration of every repetition in `samples_ns`. No token has a stamp of its own, so:

* `e2e_seconds` is carried for every test: the duration.
* `throughput_tokens_per_second` is carried for tests that generate (tg, pg): generated tokens over the sum of
  durations. Repetitions are laid end to end, because the time between them is not told and not part of it.
* A prompt test (pp) ends with logits and no token: it stands in the cell (prompt, 0 output tokens), has
  `e2e_seconds` and nothing else. Its rate is prompt tokens over that; the ratio of two engines is the same number.
* A generation test (tg) starts from an empty prompt: the cell (0, output tokens).
* `ttft_seconds`, `itl_seconds`, `tpot_seconds`, `prefill_tokens_per_second` and `decode_tokens_per_second` are
  absent. Sampling and tokenization are outside of every duration.

The depth of the KV cache (`n_depth`) was filled outside of the measured time, which no cell can say. It is a
condition of the run: one run holds one depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from enginecmp.errors import ResultsError
from enginecmp.importers.fields import Fields
from enginecmp.importers.parts import ImportedRequest, Launch, Part
from enginecmp.types import Cell

NAME = "llama-bench"

_ABOUT_THE_TEST = frozenset({"n_prompt", "n_gen", "n_depth", "test_time"})
_MEASURED = frozenset({"avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts"})
_ELSEWHERE = frozenset(
    {
        "build_commit",
        "build_number",
        "cpu_info",
        "gpu_info",
        "backends",
        "model_filename",
        "model_type",
        "model_size",
        "model_n_params",
    }
)
_DEVICES = {"CUDA": "cuda", "ROCm": "rocm", "HIP": "rocm", "Metal": "metal", "MTL": "metal", "Vulkan": "vulkan"}


def recognizes(documents: Sequence[Any]) -> bool:
    """Say whether a file is of this tool."""
    entries = documents[0] if len(documents) == 1 and isinstance(documents[0], list) else documents
    return bool(entries) and all(isinstance(e, dict) and {"n_prompt", "n_gen", "avg_ns"} <= e.keys() for e in entries)


def read(path: Path, documents: Sequence[Any]) -> list[Launch]:
    """Return the tests of a file: one process, hence one launch.

    Raises:
        ResultsError: a key is missing or wrong.
    """
    entries = documents[0] if len(documents) == 1 and isinstance(documents[0], list) else documents
    clock = 0
    launch: Launch = []
    for number, entry in enumerate(entries):
        fields = Fields.of(entry, f"{path}: [{number}]")
        part = _part(fields, clock)
        clock = part.requests[-1].end_ns
        launch.append(part)
    return [launch]


def _part(fields: Fields, clock: int) -> Part:
    prompt, output = fields.integer("n_prompt"), fields.integer("n_gen")
    durations = fields.integers("samples_ns")
    if not durations:
        msg = f"{fields.where}: samples_ns: expected one duration a repetition, got none"
        raise ResultsError(msg)
    requests = []
    for duration in durations:
        requests.append(
            ImportedRequest(
                start_ns=clock,
                end_ns=clock + duration,
                prompt_tokens=prompt,
                output_tokens=output,
            )
        )
        clock += duration
    build = fields.text("build_number")
    commit = fields.text("build_commit")
    version = f"{build} ({commit})" if build and commit else build or commit
    machine = {"cpu": fields.text("cpu_info"), "gpu": fields.text("gpu_info")}
    known = _ABOUT_THE_TEST | _MEASURED | _ELSEWHERE
    return Part(
        cell=Cell(prompt_tokens=prompt, output_tokens=output, concurrency=1),
        requests=requests,
        model=Path(fields.text("model_filename")).name or fields.text("model_type"),
        version=version,
        # llama-bench comes with the engine: they share their build.
        tool_version=version,
        device=_device(fields.text("backends")),
        conditions={"n_depth": fields.maybe_integer("n_depth") or 0},
        options={key: value for key, value in fields.values.items() if key not in known},
        machine={key: value for key, value in machine.items() if value},
        weights={
            "parameters": fields.maybe_integer("model_n_params") or 0,
            "bytes": fields.maybe_integer("model_size") or 0,
        },
    )


def _device(backends: str) -> str:
    # "CUDA", "CUDA,BLAS" or "CPU": the accelerator is what it ran on.
    for backend in backends.split(","):
        if backend in _DEVICES:
            return _DEVICES[backend]
    return "cpu" if backends in ("CPU", "BLAS", "CPU,BLAS", "BLAS,CPU") else backends.lower()
