"""How long a run will take: from earlier runs on this machine, else a first guess from the model's size."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import LaunchRecord
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.run.guess import launch_seconds
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch
from enginecmp.types import ModelInfo

_SHAPE = (
    "name",
    "profile",
    "workloads",
    "cells",
    "requests",
    "seconds",
    "warmup_requests",
    "replacement_requests",
    "requests_of",
)


class Pace:
    """Remaining time of a run, from the launches that are over.

    Args:
        plan: all launches of the run.
        over: those that ended before this start.
        most_seconds: it is over by then, whatever is planned.
    """

    def __init__(
        self, plan: Sequence[PlannedLaunch], over: Iterable[LaunchRecord], most_seconds: float = math.inf
    ) -> None:
        self._until = time.monotonic() + most_seconds
        self._left = {planned.key for planned in plan}
        self._seconds: dict[tuple[str, int | None], list[float]] = {}
        for record in over:
            self.ended(record)

    def ended(self, record: LaunchRecord) -> None:
        """Take a launch off the list; one that repeats another was not on it."""
        if record.replaces is not msgspec.UNSET:
            return
        self._left.discard(record.key)
        self._seconds.setdefault((record.engine, record.cell), []).append(record.seconds)

    def without(self, labels: Collection[str]) -> None:
        """Take every launch of these engines off the list."""
        self._left = {key for key in self._left if key[1] not in labels}

    def remaining_seconds(self) -> float | None:
        """Return the expected time left; None while some engine has not been seen yet and no end is set."""
        most = max(0.0, self._until - time.monotonic())
        total = 0.0
        for _, engine, cell in self._left:
            seen = self._seconds.get((engine, cell))
            if not seen:
                return most if math.isfinite(most) else None
            total += sum(seen) / len(seen)
        return min(total, most)

    def describe(self) -> str:
        """Return the time left for people."""
        left = self.remaining_seconds()
        if not self._left:
            return ""
        most = "at most " if math.isfinite(self._until) else ""
        return "" if left is None else f"{most}{duration(left)} left"


def expected_seconds(
    scenario: Scenario, model: ModelInfo, configs: Sequence[EngineConfig], results: Path
) -> tuple[float, str]:
    """Return how long the launches of a run will take, and what that is based on.

    Args:
        scenario: what would run.
        model: on which file.
        configs: with which engines.
        results: folder of earlier runs.
    """
    of_pass, basis = _pass_seconds(scenario, model, configs, results)
    return sum(of_pass.values()) * scenario.blocks, basis


def left_seconds(
    scenario: Scenario,
    model: ModelInfo,
    configs: Sequence[EngineConfig],
    results: Path,
    left: Iterable[PlannedLaunch],
) -> tuple[float, str]:
    """Return how long some launches of a run will take, and what that is based on; see `expected_seconds`."""
    of_pass, basis = _pass_seconds(scenario, model, configs, results)
    parts = len(scenario.cells) if scenario.launch_per_cell else 1
    return sum(of_pass[planned.engine] / parts for planned in left), basis


def _pass_seconds(
    scenario: Scenario, model: ModelInfo, configs: Sequence[EngineConfig], results: Path
) -> tuple[dict[str, float], str]:
    """Return seconds of one pass over all cells by label, and what they are based on."""
    history = _history(results, scenario, model)
    seconds, guessed = {}, []
    for config in configs:
        options = config.options
        seen = history.get((config.plugin.name, _version(config), options.threads, _extra(options.extra)))
        if seen is None:
            guessed.append(config.label)
            seen = launch_seconds(scenario, model, config)
        seconds[config.label] = seen
    return seconds, "from earlier runs here" if not guessed else f"a first guess for {', '.join(guessed)}"


def _version(config: EngineConfig) -> str:
    """Return the version that earlier runs are looked for by; of a server that is still to be started none is known."""
    return "" if config.remote and not config.probed.version else config.engine_version


def _extra(extra: Mapping[str, str]) -> str:
    return json.dumps(dict(extra), sort_keys=True)


def _history(results: Path, scenario: Scenario, model: ModelInfo) -> Mapping[tuple[str, str, int, str], float]:
    """Return mean launch seconds by (engine, version, threads, options) over earlier runs of the same shape.

    Those of an engine that told its version only when it was loaded stand under none, too.
    """
    # As JSON gives it back, where a tuple has become a list.
    as_stored = msgspec.json.decode(msgspec.json.encode(scenario))
    shape = {key: value for key, value in as_stored.items() if key in _SHAPE}
    seconds: dict[tuple[str, str, int, str], list[float]] = {}
    for path in sorted(results.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
            same = {key: value for key, value in manifest.scenario.items() if key in _SHAPE}
            if manifest.model.sha256 != model.sha256 or same != shape:
                continue
            records = finished_launches(path.parent)
        except ResultsError:
            continue
        for engine in manifest.engines:
            name, options = engine.options.get("engine", engine.name), _extra(engine.options.get("extra") or {})
            threads = engine.options.get("threads", 0)
            mine = [
                record
                for record in records
                if record.engine == engine.name and record.status == "ok" and record.replaces is msgspec.UNSET
            ]
            # Launches of single cells add up to one pass over all of them.
            passes = len(mine) / max(1, len({record.cell for record in mine}))
            mean = [sum(record.seconds for record in mine) / passes] if mine else []
            for version in (engine.version, ""):
                seconds.setdefault((name, version, threads, options), []).extend(mean)
    return {key: sum(values) / len(values) for key, values in seconds.items() if values}


def time_range(seconds: float, extra: float) -> str:
    """Return how long a run takes, with what may come on top: "45 s", "6–9 min", "2 h 05 min – 3 h 07 min".

    Args:
        seconds: of the planned launches.
        extra: most time on top, as a share of it.
    """
    least, most = duration(seconds), duration(seconds * (1 + extra))
    if least == most:
        return least
    if seconds >= 90 and seconds * (1 + extra) < 5400:
        return f"{seconds / 60:.0f}–{seconds * (1 + extra) / 60:.0f} min"
    return f"{least} – {most}"


def duration(seconds: float) -> str:
    """Return a duration for people: "45 s", "4 min 30 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
