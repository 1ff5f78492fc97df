"""Fixtures of this engine's tests: tiny models, and the real engine in fresh processes."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import ModelInfo, read_gguf
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_vocab import tiny_vocabulary

SCENARIOS = Path(__file__).with_name("mistralrs_scenarios.py")

# Whatever the shell that started pytest says of threads and KV types must not reach the engine.
_ENGINE_VARIABLES = ("CANDLE_", "RAYON_", "MISTRALRS_", "RUST_")


class Scenario(Protocol):
    """Run a scenario by name in a fresh process and return its result."""

    def __call__(
        self, name: str, *, threads: int = 1, environment: Mapping[str, str] = {}, **arguments: Any
    ) -> Any: ...


class Scores(Protocol):
    """Return the rows of a scoring scenario and the token ids that were scored."""

    def __call__(self, name: str, **arguments: Any) -> tuple[NDArray[np.float32], list[int]]: ...


class Variant(Protocol):
    """Write a copy of a model with metadata fields replaced, or one tensor left out."""

    def __call__(
        self, model: ModelInfo, fields: Mapping[str, tuple[str, Any]], tensors_without: str = ""
    ) -> ModelInfo: ...


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """Return the function that runs a scenario, threads set before the interpreter starts, as the host does."""

    def run(name: str, *, threads: int = 1, environment: Mapping[str, str] = {}, **arguments: Any) -> Any:
        given, result = tmp_path / "arguments.json", tmp_path / "result.json"
        given.write_text(json.dumps(arguments, default=msgspec.to_builtins))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(_ENGINE_VARIABLES)}
        variables = dict.fromkeys(("CANDLE_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads))
        done = subprocess.run(
            [sys.executable, str(SCENARIOS), name, str(given), str(result)],
            env=inherited | variables | {"RUST_LOG": "off", "HF_HUB_OFFLINE": "1"} | dict(environment),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        (tmp_path / "stdout.txt").write_text(done.stdout)
        return json.loads(result.read_text())

    return run


@pytest.fixture
def scores(scenario: Scenario, tmp_path: Path) -> Scores:
    """Return the function that runs `scores` or `oracle_scores`."""

    def run(name: str, **arguments: Any) -> tuple[NDArray[np.float32], list[int]]:
        out = tmp_path / f"{name}.npy"
        ids = scenario(name, out=str(out), **arguments)
        return np.load(out), ids

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and quantization, written once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(
        lambda architecture="llama", quantization="F32": write_synth(
            folder / f"{architecture}-{quantization}.gguf", like=f"tiny-{architecture}", quantization=quantization
        )
    )


@pytest.fixture
def variant(tmp_path: Path) -> Variant:
    """Return a function that copies a model with metadata replaced or one tensor left out."""

    def write(model: ModelInfo, fields: Mapping[str, tuple[str, Any]], tensors_without: str = "") -> ModelInfo:
        file = read_gguf(model.path)
        content = Path(model.path).read_bytes()
        kept = [content[slice(*span)] for key, span in file.spans.items() if key not in fields]
        plans = [
            TensorPlan(name=name, shape=each.shape, type=each.type)
            for name, each in file.tensors.items()
            if name != tensors_without
        ]
        path = tmp_path / f"variant-{len(list(tmp_path.iterdir()))}.gguf"
        added = [field(key, kind, value) for key, (kind, value) in fields.items()]
        write_gguf(path, kept + added, plans, lambda plan: [file.raw(plan.name).tobytes()])
        return msgspec.structs.replace(model, path=str(path))

    return write


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """Tokens of the tiny models, by id, in the GPT-2 byte alphabet."""
    return tiny_vocabulary()[0]


@pytest.fixture(scope="session")
def ids_of(vocabulary: list[str]) -> Callable[..., list[int]]:
    """Return the function that looks up tokens of the tiny models."""
    return lambda *tokens: [vocabulary.index(token) for token in tokens]


@pytest.fixture(scope="session")
def prompt(ids_of: Callable[..., list[int]]) -> list[int]:
    """Twelve ids that read back as themselves: "the end of the river"."""
    return ids_of("t", "he", "Ġ", "en", "d", "Ġof", "Ġthe", "Ġ", "r", "i", "v", "er")


@pytest.fixture(scope="session")
def kl() -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float64]]:
    """Return KL(p || q) in nats at every position, from two sets of logits, in float64."""

    def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return found

    def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> NDArray[np.float64]:
        log_p, log_q = log_softmax(p), log_softmax(q)
        found: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        return found

    return divergence
