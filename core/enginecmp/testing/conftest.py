"""Fixtures of the conformance suite: the engine under test, a tiny model, and launches of one on the other."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enginecmp.launch.launch import Launch
from enginecmp.models.store import resolve
from enginecmp.plugins.discovery import discover, find
from enginecmp.plugins.plugin import Plugin
from enginecmp.testing.tiny_models import tiny_model
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

DEADLINES = Deadlines(load_seconds=300, prefill_seconds=120, decode_seconds=120, score_seconds=300)

Prompts = Sequence[tuple[int, ...]]
Tiny = Callable[..., ModelInfo]
Load = Callable[[ModelInfo], Launch]


class Subject:
    """The engine under test, and how to launch it.

    Args:
        plugin: of the engine.
        model: file to load.
        options: defaults of every launch.
        folder: for logs.
    """

    def __init__(self, plugin: Plugin, model: ModelInfo, options: LoadOptions, folder: Path) -> None:
        self.plugin = plugin
        self.model = model
        self.options = options
        self._folder = folder

    @contextlib.contextmanager
    def launched(self, model: ModelInfo | None = None, **changes: Any) -> Iterator[Launch]:
        """Launch and load; changes are to the load options."""
        options = msgspec.structs.replace(self.options, **changes)
        with Launch(self.plugin.name, self.plugin, log=self._folder / "engine.log", options=options) as launch:
            launch.load(model or self.model, DEADLINES.load_seconds)
            yield launch

    @contextlib.contextmanager
    def started(self, **changes: Any) -> Iterator[Launch]:
        """Launch without loading."""
        options = msgspec.structs.replace(self.options, **changes)
        with Launch(self.plugin.name, self.plugin, log=self._folder / "engine.log", options=options) as launch:
            yield launch


@pytest.fixture(scope="session")
def plugin(pytestconfig: pytest.Config) -> Plugin:
    """The plugin that --engine names."""
    name = pytestconfig.getoption("--engine")
    if not name:
        pytest.skip("no engine named; run with --engine NAME")
    return find(name, discover())


@pytest.fixture(scope="session")
def model(plugin: Plugin, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    """The model that --engine-model names, else a tiny one that the engine can load."""
    assert plugin.info is not None
    if name := pytestconfig.getoption("--engine-model"):
        return resolve(name, fetch=True)
    architecture = next((a for a in ("llama", "qwen2", "phi3", "gpt2") if a in plugin.info.architectures), None)
    if architecture is None:
        pytest.skip(f"{plugin.name} loads {plugin.info.architectures}: name a model with --engine-model")
    quantization = "F32" if "F32" in plugin.info.quantizations else "Q8_0"
    return tiny_model(tmp_path_factory.mktemp("model"), architecture, quantization)


@pytest.fixture(scope="session")
def subject(
    plugin: Plugin, model: ModelInfo, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    """The engine under test with its defaults."""
    assert plugin.info is not None
    extra = dict(item.partition("=")[::2] for item in pytestconfig.getoption("--engine-option"))
    options = LoadOptions(
        device=pytestconfig.getoption("--engine-device") or plugin.info.devices[0],
        threads=1,
        context_tokens=128,
        numerics="exact",
        extra=extra,
    )
    return Subject(plugin, model, options, tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def prompts(model: ModelInfo) -> Prompts:
    """Three prompts of 5, 17 and 48 ids, cut from the bundled texts."""
    from enginecmp.prompts import PromptSet

    source = PromptSet(model)
    return [source.take(length, key=length, seed=1) for length in (5, 17, 48)]


@pytest.fixture(scope="session")
def launch(subject: Subject) -> Iterator[Launch]:
    """One launch that the tests of ordinary requests share."""
    with subject.launched() as launch:
        yield launch


@pytest.fixture(scope="session")
def several(subject: Subject) -> Iterator[Launch]:
    """One launch with room for three sequences that the tests of batches share."""
    with subject.launched(max_sequences=3) as launch:
        yield launch


@pytest.fixture(scope="session")
def tiny(plugin: Plugin, pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return the tiny model of an architecture and a type that the engine says it loads, written once."""
    assert plugin.info is not None
    info, folder = plugin.info, tmp_path_factory.mktemp("tiny")

    @functools.cache
    def write(architecture: str, kind: str = "F32") -> ModelInfo:
        if pytestconfig.getoption("--engine-model"):
            pytest.skip("a model is named: the engine is given no other")
        if architecture not in info.architectures:
            pytest.skip(f"the engine does not load {architecture}")
        if kind not in info.quantizations:
            pytest.skip(f"the engine does not load {kind}")
        return tiny_model(folder, architecture, kind)

    return write


@pytest.fixture(scope="session")
def load(subject: Subject) -> Iterator[Load]:
    """Load one model after the other into one launch, started again where the last one was the end of it."""
    with contextlib.ExitStack() as stack:
        running: list[Launch] = []

        def load(model: ModelInfo) -> Launch:
            if not running or running[-1].returncode is not None:
                running.append(stack.enter_context(subject.started()))
            running[-1].call("unload", DEADLINES.load_seconds)
            running[-1].load(model, DEADLINES.load_seconds)
            return running[-1]

        yield load
