"""Fixtures of this engine's tests: a stub server that misbehaves, and hooks called as the worker calls them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from enginecmp import LoadOptions, ModelInfo
from enginecmp.models.synth import write_synth
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp.worker.generate import generate

# Helpers beside the tests, openai_*.py, are modules of their own.
sys.path.append(str(Path(__file__).parent))

import openai_stub


class Driver:
    """One loaded session, driven as the worker does it."""

    def __init__(self, model: ModelInfo, options: LoadOptions) -> None:
        self.hook = manager_with(load_object("enginecmp_openai_server")).hook
        self.session = self.hook.cmp_load(model=model, options=options)

    def request(self, token_ids: Sequence[int], output_tokens: int) -> tuple[list[int], int, dict[str, float]]:
        """Return what was yielded, the tokens in all, and the metrics."""
        yielded: list[int] = []
        hook, session = self.hook, self.session
        hook.cmp_reset(session=session)
        hook.cmp_prepare(session=session, token_ids=token_ids, output_tokens=output_tokens)
        total = generate(hook, session, token_ids, output_tokens, yielded.append)
        return yielded, len(yielded) if total is None else total, dict(hook.cmp_metrics(session=session))

    def close(self) -> None:
        self.hook.cmp_unload(session=self.session)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """A llama-shaped model of under 1 MB."""
    return write_synth(tmp_path_factory.mktemp("tiny") / "tiny-llama.gguf", like="tiny-llama", quantization="F32")


@pytest.fixture
def stub() -> Iterator[Any]:
    """A server that behaves until it is told otherwise."""
    with openai_stub.running() as server:
        yield server


@pytest.fixture
def drive_on() -> Iterator[Callable[[ModelInfo, LoadOptions], Driver]]:
    """Return the function that loads a session; it ends with the test."""
    drivers: list[Driver] = []

    def load(model: ModelInfo, options: LoadOptions) -> Driver:
        drivers.append(Driver(model, options))
        return drivers[-1]

    yield load
    for driver in drivers:
        driver.close()


@pytest.fixture
def drive(stub: Any, tiny: ModelInfo, drive_on: Callable[[ModelInfo, LoadOptions], Driver]) -> Callable[..., Driver]:
    """Return the function that loads a session on the stub; keywords are engine options, and max_sequences."""

    def load(*, max_sequences: int = 1, **extra: str) -> Driver:
        extra = {"url": stub.url, **extra}
        return drive_on(tiny, LoadOptions(context_tokens=64, max_sequences=max_sequences, extra=extra))

    return load
