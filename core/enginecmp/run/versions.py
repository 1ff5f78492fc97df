"""Versions that only a loaded engine tells, a server's above all: kept in the manifest, the same for a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginecmp.format.phases import Phase
from enginecmp.format.records import RunEngine
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import LaunchFailure


class Versions:
    """What the engines of a run said they are.

    Args:
        engines: entries of the manifest; they are given what is told.
        configs: the engines.
    """

    def __init__(self, engines: Sequence[RunEngine], configs: Sequence[EngineConfig]) -> None:
        self._engines = {engine.name: engine for engine in engines}
        facts = {config.label: config.plugin.info.version for config in configs if config.plugin.info is not None}
        self._told = {
            label: engine.version for label, engine in self._engines.items() if engine.version != facts.get(label)
        }

    def loaded(self, label: str, answer: Mapping[str, Any]) -> None:
        """Take what an engine said when it was loaded.

        Args:
            label: of the engine; one that is not of the run is passed over.
            answer: of `Launch.load`.

        Raises:
            LaunchFailure: it is another version than that of the launches before.
        """
        version = str(answer.get("version", ""))
        if not version or label not in self._engines:
            return
        before = self._told.setdefault(label, version)
        if before != version:
            msg = f"{label}: expected {before} as in this run so far, got {version}; start a new run for it"
            raise LaunchFailure(msg, status="error", phase=Phase.LOAD)
        self._engines[label].version = version
