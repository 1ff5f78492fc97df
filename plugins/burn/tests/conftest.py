"""Tiny models with random weights, variants of them, and sessions that are closed when their test ends."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import LoadOptions, ModelInfo, read_gguf
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.synth import write_synth

# Only `make burn` installs the plugin. Without it its facts are tested, and the rest skips with the reason.
if importlib.util.find_spec("enginecmp_burn") is None:
    sys.path.append(str(Path(__file__).parents[1]))

from enginecmp_burn import cmp_load, cmp_probe, cmp_unload
from enginecmp_burn.options import THREAD_VARIABLE


class Load(Protocol):
    """Load a model with one thread; the rest as `LoadOptions`."""

    def __call__(self, model: ModelInfo, **options: Any) -> Any: ...


class Rewrite(Protocol):
    """Copy a model with metadata fields replaced, tensors left out, or tensors of other types and bytes."""

    def __call__(
        self,
        model: ModelInfo,
        fields: Mapping[str, tuple[str, Any]] = {},
        without: str = "",
        tensors: Mapping[str, tuple[str, bytes]] = {},
    ) -> ModelInfo: ...


@pytest.fixture(scope="session")
def extension() -> None:
    """Skip where the Rust extension is not built or does not run here."""
    probe = cmp_probe(LoadOptions())
    if not probe.ok:
        pytest.skip(f"burn: {probe.reason}; {probe.mend}")


@pytest.fixture
def load(extension: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    sessions: list[Any] = []
    # Burn's pool reads it once per process, so every test here computes with one thread.
    monkeypatch.setenv(THREAD_VARIABLE, "1")

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact"} | options
        sessions.append(cmp_load(model=model, options=LoadOptions(threads=1, **asked)))
        return sessions[-1]

    yield load
    for session in sessions:
        cmp_unload(session)


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
def rewrite(tmp_path: Path) -> Rewrite:
    def write(
        model: ModelInfo,
        fields: Mapping[str, tuple[str, Any]] = {},
        without: str = "",
        tensors: Mapping[str, tuple[str, bytes]] = {},
    ) -> ModelInfo:
        file = read_gguf(model.path)
        content = Path(model.path).read_bytes()
        kept = [content[slice(*span)] for key, span in file.spans.items() if key not in fields]
        old = {
            name: TensorPlan(name=name, shape=each.shape, type=tensors[name][0] if name in tensors else each.type)
            for name, each in file.tensors.items()
            if name != without
        }
        path = tmp_path / f"variant-{len(list(tmp_path.iterdir()))}.gguf"
        write_gguf(
            path,
            kept + [field(key, kind, value) for key, (kind, value) in fields.items()],
            list(old.values()),
            lambda plan: [tensors[plan.name][1] if plan.name in tensors else file.raw(plan.name).tobytes()],
        )
        return msgspec.structs.replace(model, path=str(path))

    return write


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """60 ids that every tiny vocabulary has, without a pattern."""
    return [(i * i * 7 + i * 13 + 3) % 251 for i in range(60)]


@pytest.fixture(scope="session")
def mean_kl() -> Callable[[NDArray[Any], NDArray[Any]], float]:
    """Return KL(p || q) in nats, averaged over positions, from two sets of logits, in float64."""

    def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    def divergence(p: NDArray[Any], q: NDArray[Any]) -> float:
        log_p, log_q = log_softmax(p), log_softmax(q)
        return float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean())

    return divergence
