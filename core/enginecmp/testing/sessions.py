"""Sessions of one engine in this process, for a plugin's own tests of what only it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from enginecmp.types import LoadOptions, ModelInfo


def sessions(plugin: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Yield what loads a model with one thread, exact numerics and room for 256 tokens unless told otherwise.

    Skips, with the engine's own reason, where it cannot run. Everything is unloaded in the end.

    Args:
        plugin: module with the engine's hooks.
        monkeypatch: for the thread variables, which libraries read once per process.
    """
    require_engine(plugin)
    for name, value in plugin.cmp_engine().environment.items():
        monkeypatch.setenv(name, value.replace("{threads}", "1"))
    opened: list[Any] = []

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact"} | options
        opened.append(plugin.cmp_load(model=model, options=LoadOptions(threads=1, **asked)))
        return opened[-1]

    yield load
    for session in opened:
        plugin.cmp_unload(session)


def require_engine(plugin: Any) -> None:
    """Skip a test where the engine cannot run."""
    probe = plugin.cmp_probe(LoadOptions())
    if not probe.ok:
        pytest.skip(f"{plugin.cmp_engine().name}: {probe.reason}; {probe.fix}")
