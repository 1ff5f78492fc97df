"""Tiny models, and sessions that are closed when their test ends."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from enginecmp import ModelInfo
from enginecmp.testing.sessions import sessions
from enginecmp.testing.tiny_models import tiny_model

# Without cargo the plugin is not installed, and every test here skips with the reason.
if importlib.util.find_spec("enginecmp_candle") is None:
    sys.path.append(str(Path(__file__).parents[1]))

import enginecmp_candle


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return what loads a model with one thread; the rest as `LoadOptions`."""
    yield from sessions(enginecmp_candle, monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and type, written once."""
    return functools.cache(functools.partial(tiny_model, tmp_path_factory.mktemp("tiny")))
