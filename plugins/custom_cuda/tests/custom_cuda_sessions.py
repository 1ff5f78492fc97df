"""Fixtures for tests that drive whole sessions: tiny models, and sessions that are closed when their test ends.

A test module takes them with `pytest_plugins = ("custom_cuda_sessions",)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pytest
from custom_cuda_models import tiny_model
from numpy.typing import NDArray

from enginecmp import LoadOptions, ModelInfo
from enginecmp_custom_cuda import cmp_decode, cmp_load, cmp_prefill, cmp_reset, cmp_unload
from enginecmp_custom_cuda.device import Device


class Load(Protocol):
    """Load a model on the device of this run, exact and with a context of 256; the rest as `LoadOptions`."""

    def __call__(self, model: ModelInfo, **options: Any) -> Any: ...


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and kind, written once."""
    folder = tmp_path_factory.mktemp("tiny")
    return functools.cache(lambda architecture="llama", kind="F32": tiny_model(folder, architecture, kind))


@pytest.fixture
def load(device: Device) -> Iterator[Load]:
    sessions: list[Any] = []

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact", "device": device.kind} | options
        sessions.append(cmp_load(model=model, options=LoadOptions(**asked)))
        return sessions[-1]

    yield load
    for session in sessions:
        cmp_unload(session)


@pytest.fixture(scope="session")
def token_ids() -> list[int]:
    """90 ids that every tiny vocabulary has, without a pattern."""
    return [(i * i * 7 + i * 13 + 3) % 251 for i in range(90)]


def generate(session: Any, token_ids: Sequence[int], output_tokens: int) -> list[int]:
    """Return the greedy ids of one request."""
    cmp_reset(session)
    first = cmp_prefill(session, token_ids, output_tokens)
    return [first, *cmp_decode(session, output_tokens - 1)]


def mean_kl(reference: NDArray[Any], logits: NDArray[Any]) -> float:
    """Return KL(reference || logits) in nats, averaged over positions, in float64."""

    def log_softmax(values: NDArray[Any]) -> NDArray[np.float64]:
        shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
