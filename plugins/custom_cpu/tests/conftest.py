"""Tiny models, and sessions that are closed when their test ends."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from enginecmp import ModelInfo, Request
from enginecmp.testing.sessions import sessions
from enginecmp.testing.tiny_models import tiny_model

# Without cargo the plugin is not installed, and every test here skips with the reason.
if importlib.util.find_spec("enginecmp_custom_cpu") is None:
    sys.path.append(str(Path(__file__).parents[1]))

import enginecmp_custom_cpu as engine


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return what loads a model with one thread; the rest as `LoadOptions`."""
    yield from sessions(engine, monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and type, written once."""
    return functools.cache(functools.partial(tiny_model, tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def generate() -> Callable[..., list[int]]:
    """Return what runs one request after a reset and gives its ids."""

    def run(session: Any, prompt: Sequence[int], output_tokens: int) -> list[int]:
        engine.cmp_reset(session)
        first = engine.cmp_prefill(session, prompt, output_tokens)
        return [first, *engine.cmp_decode(session, output_tokens - 1)] if output_tokens > 1 else [first]

    return run


@pytest.fixture
def batch() -> Callable[..., list[list[int]]]:
    """Return what runs requests together, a new one every `every` steps, and gives their ids."""

    def run(session: Any, prompts: Sequence[Sequence[int]], output_tokens: int, every: int = 0) -> list[list[int]]:
        engine.cmp_reset(session)
        waiting = [
            Request(id=str(n), token_ids=prompt, output_tokens=output_tokens) for n, prompt in enumerate(prompts)
        ]
        found: dict[str, list[int]] = {request.id: [] for request in waiting}
        steps = 0
        while waiting or any(len(ids) < output_tokens for ids in found.values()):
            while waiting and steps >= every * (len(prompts) - len(waiting)):
                if not engine.cmp_submit(session, waiting[0]):
                    break
                waiting.pop(0)
            pairs = engine.cmp_step(session)
            assert len({identity for identity, _ in pairs}) == len(pairs), "at most one token of each request"
            for identity, token in pairs:
                found[identity].append(token)
            steps += 1
        assert engine.cmp_step(session) == []
        return list(found.values())

    return run
