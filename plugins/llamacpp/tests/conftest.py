"""Tiny models with random weights, and sessions that are closed when their test ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from enginecmp import LoadOptions, ModelInfo
from enginecmp.models.synth import write_synth
from enginecmp_llamacpp import cmp_load, cmp_unload

sys.path.append(str(Path(__file__).parent))


class Load(Protocol):
    """Load a model with one thread; the rest as `LoadOptions`."""

    def __call__(self, model: ModelInfo, **options: Any) -> Any: ...


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelInfo]:
    folder = tmp_path_factory.mktemp("tiny")
    written: dict[tuple[str, str], ModelInfo] = {}

    def write(architecture: str, quantization: str) -> ModelInfo:
        key = (architecture, quantization)
        if key not in written:
            path = folder / f"{architecture}-{quantization}.gguf"
            written[key] = write_synth(path, like=f"tiny-{architecture}", quantization=quantization, seed=0)
        return written[key]

    return write


@pytest.fixture(scope="session")
def tiny(tiny_model: Callable[[str, str], ModelInfo]) -> ModelInfo:
    return tiny_model("llama", "F32")


@pytest.fixture
def load() -> Iterator[Load]:
    sessions: list[Any] = []

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact"} | options
        sessions.append(cmp_load(model=model, options=LoadOptions(threads=1, **asked)))
        return sessions[-1]

    yield load
    for session in sessions:
        cmp_unload(session)


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """60 ids that every tiny vocabulary has, without a pattern."""
    return [(i * i * 7 + i * 13 + 3) % 251 for i in range(60)]
