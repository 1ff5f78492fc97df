"""Both engines that are built on the shim, one after the other."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from enginecmp import ModelInfo
from enginecmp.testing.sessions import sessions
from enginecmp.testing.tiny_models import tiny_model

PLUGINS = Path(__file__).parents[2]


@pytest.fixture(params=["candle", "burn"])
def engine(request: pytest.FixtureRequest) -> ModuleType:
    """The module of an engine's plugin; without cargo it is not installed, and its facts are tested all the same."""
    name = f"enginecmp_{request.param}"
    if importlib.util.find_spec(name) is None:
        sys.path.append(str(PLUGINS / request.param))
    return importlib.import_module(name)


@pytest.fixture
def load(engine: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return what loads a model with one thread; the rest as `LoadOptions`."""
    yield from sessions(engine, monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelInfo]:
    """Return the tiny model of an architecture and type, written once."""
    return functools.cache(functools.partial(tiny_model, tmp_path_factory.mktemp("tiny")))
