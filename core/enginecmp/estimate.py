"""How long a run will take: from earlier runs on this machine, else a first guess from the model's size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from enginecmp.contender import Contender
from enginecmp.errors import ResultsError
from enginecmp.plan import PlannedLaunch
from enginecmp.results import MANIFEST, LaunchRecord, finished_launches, read_manifest
from enginecmp.scenarios import Scenario
from enginecmp.types import ModelInfo

_GUESS_READ_BYTES_PER_SECOND = 4e9
_GUESS_START_SECONDS = 3.0
_GUESS_PREFILL_SPEEDUP = 8.0
_GUESS_OPERATION_SECONDS = 0.01
_SHAPE = ("name", "profile", "cells", "requests", "seconds", "warmup_requests", "spare_requests", "requests_of")


class Pace:
    """Remaining time of a run, from the launches that are over.

    Args:
        plan: all launches of the run.
        over: those that ended before this start.
    """

    def __init__(self, plan: Sequence[PlannedLaunch], over: Iterable[LaunchRecord]) -> None:
        self._left = {planned.key for planned in plan}
        self._seconds: dict[tuple[str, int | None], list[float]] = {}
        for record in over:
            self.ended(record)

    def ended(self, record: LaunchRecord) -> None:
        """Take a launch off the list."""
        self._left.discard(record.key)
        self._seconds.setdefault((record.engine, record.cell), []).append(record.seconds)

    def without(self, labels: Collection[str]) -> None:
        """Take every launch of these engines off the list."""
        self._left = {key for key in self._left if key[1] not in labels}

    def remaining_seconds(self) -> float | None:
        """Return the expected time left; None while some engine has not been seen yet."""
        total = 0.0
        for _, engine, cell in self._left:
            seen = self._seconds.get((engine, cell))
            if not seen:
                return None
            total += sum(seen) / len(seen)
        return total

    def describe(self) -> str:
        """Return the time left for people."""
        left = self.remaining_seconds()
        if not self._left:
            return ""
        return "" if left is None else f"{duration(left)} left"


def expected_seconds(
    scenario: Scenario, model: ModelInfo, contenders: Sequence[Contender], results: Path
) -> tuple[float, str]:
    """Return how long the launches of a run will take, and what that is based on.

    Args:
        scenario: what would run.
        model: on which file.
        contenders: with which engines.
        results: folder of earlier runs.
    """
    history = _history(results, scenario, model)
    total, guessed = 0.0, []
    for contender in contenders:
        seen = history.get((contender.plugin.name, contender.engine_version, contender.options.threads))
        if seen is None:
            guessed.append(contender.label)
            seen = _guess(scenario, model)
        total += seen * scenario.blocks
    basis = "from earlier runs here" if not guessed else f"a first guess for {', '.join(guessed)}"
    return total, basis


def _guess(scenario: Scenario, model: ModelInfo) -> float:
    """Return seconds of one launch, as if decoding read every weight once a token from memory."""
    token_seconds = model.bytes / _GUESS_READ_BYTES_PER_SECOND
    seconds = _GUESS_START_SECONDS
    for cell in scenario.cells:
        if scenario.kind == "operation":
            request = _GUESS_OPERATION_SECONDS
        else:
            request = token_seconds * (cell.prompt_tokens / _GUESS_PREFILL_SPEEDUP + cell.output_tokens)
        measured = max(scenario.requests_in(cell) * request, scenario.seconds or 0.0)
        if cell.arrival and cell.rate_per_second:
            measured = max(measured, scenario.requests_in(cell) / cell.rate_per_second)
        if scenario.launch_per_cell:
            seconds += _GUESS_START_SECONDS
        # Users of a closed loop warm up each for itself, and what they wait for is finished after the measurement.
        users = cell.concurrency if cell.concurrency > 1 and not cell.arrival else 1
        rates = 1.5 * max(1, len(scenario.offered_load)) if not scenario.calibration else 1
        seconds += rates * ((users * scenario.warmup_requests + users - 1) * request + measured)
    return seconds


def _history(results: Path, scenario: Scenario, model: ModelInfo) -> Mapping[tuple[str, str, int], float]:
    """Return mean launch seconds by (engine, version, threads) over earlier runs of the same shape."""
    # As JSON gives it back, where a tuple has become a list.
    as_stored = msgspec.json.decode(msgspec.json.encode(scenario))
    shape = {key: value for key, value in as_stored.items() if key in _SHAPE}
    seconds: dict[tuple[str, str, int], list[float]] = {}
    for path in sorted(results.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(path.parent)
            records = finished_launches(path.parent)
        except ResultsError:
            continue
        same = {key: value for key, value in manifest.scenario.items() if key in _SHAPE}
        if manifest.model.sha256 != model.sha256 or same != shape:
            continue
        for engine in manifest.engines:
            key = (engine.options.get("engine", engine.name), engine.version, engine.options.get("threads", 0))
            mine = [record for record in records if record.engine == engine.name and record.status == "ok"]
            # Launches of single cells add up to one pass over all of them.
            passes = len(mine) / max(1, len({record.cell for record in mine}))
            seconds.setdefault(key, []).extend([sum(record.seconds for record in mine) / passes] if mine else [])
    return {key: sum(values) / len(values) for key, values in seconds.items() if values}


def duration(seconds: float) -> str:
    """Return a duration for people: "45 s", "4 min 30 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
