"""Drive one engine through one launch: load, then cell by cell what the scenario's kind measures."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from enginecmp import clock
from enginecmp.errors import ModelError, UnreadableSample
from enginecmp.format.records import NOT_BEGUN, Cell, LaunchRecord, Sample
from enginecmp.format.text import plain
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.launch.model_file import file_for, files_of
from enginecmp.measure.judged import JudgeProcess
from enginecmp.measure.repeat import check_repeated_prompt
from enginecmp.measure.task import Place, Task
from enginecmp.prompts import PromptSet
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch, cells_in_block
from enginecmp.telemetry.memory import reset_peak
from enginecmp.telemetry.page_cache import resident_share
from enginecmp.telemetry.watch import Telemetry
from enginecmp.types import LoadOptions, ModelInfo

_REASON_CHARACTERS = 500
"""Most of a failure that its launch's line keeps: a longer text stands whole in the sample, and once."""


def measure_of(scenario: Scenario, cell: Cell) -> Callable[[Task], None]:
    """Return the function that measures a cell: `measure` of its module in `enginecmp.measure`."""
    several = scenario.kind == "requests" and (cell.concurrency > 1 or bool(cell.arrival))
    name = "concurrent" if several else scenario.kind
    found: Callable[[Task], None] = importlib.import_module(f"enginecmp.measure.{name}").measure
    return found


def room_for(cell: Cell, sequences: int, options: LoadOptions) -> LoadOptions:
    """Return load options with room for one cell alone, whose requests or sequences at once are so many."""
    return msgspec.structs.replace(
        options,
        context_tokens=cell.prompt_tokens + cell.output_tokens,
        max_sequences=min(sequences, options.max_sequences),
    )


def _file_cache(scenario: Scenario, cell: Cell, model: ModelInfo) -> dict[str, float]:
    """Return which share of the weights file is in memory before the launch, set as the cell asks.

    Raises:
        LaunchFailure: the cell asks for what this machine cannot do.
    """
    if scenario.kind == "load":
        from enginecmp.measure.load import before

        return before(cell, model)
    try:
        share = resident_share(*files_of(model))
    except OSError:
        return {}
    return {} if share is None else {"page_cache_share": share}


def _load_flags(scenario: Scenario, launch: Launch, loaded: dict[str, Any]) -> list[str]:
    """Return what disturbed a load, where loads are what is measured; elsewhere its sizes count, whatever its time."""
    if scenario.kind != "load":
        return []
    start_ns, end_ns = loaded["start_ns"], loaded["end_ns"]
    return [
        *scenario.validity.flags(loaded["metrics"], (end_ns - start_ns) / 1e9),
        *launch.conditions(start_ns, end_ns),
    ]


class Driver:
    """Runs planned launches of one scenario on one model.

    Args:
        scenario: what to run.
        model: the weights file.
        prompts: where prompts come from, the same ids for every engine.
        seed: of the run.
        logs: folder for what engines print.
        telemetry: the sensors.
        loaded: told the label and the answer of every engine that was loaded; what it raises ends that launch.
    """

    def __init__(
        self,
        scenario: Scenario,
        model: ModelInfo,
        prompts: PromptSet,
        seed: int,
        logs: Path,
        telemetry: Telemetry,
        loaded: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._scenario = scenario
        self._model = model
        self._prompts = prompts
        self._seed = seed
        self._logs = logs
        self._telemetry = telemetry
        self._loaded = loaded
        self._judge = JudgeProcess(scenario.measure, logs / "judge.log") if scenario.measure else None

    def run(
        self,
        planned: PlannedLaunch,
        config: EngineConfig,
        name: str,
        keep: Callable[[Sample], None],
        replaces: str = "",
        only: Collection[Cell] = (),
    ) -> LaunchRecord:
        """Launch an engine, run its cells, and pass each sample on before the next request starts.

        A failing engine never raises: it ends in the record and in one sample that says what happened.

        Args:
            planned: block, position and label; with a cell where that cell has a launch of its own.
            config: the engine.
            name: of the launch, in samples and log.
            keep: called with each sample; what it raises (a full disk) ends the launch and passes through.
            replaces: name of the launch that this one repeats; empty where it is the first one.
            only: the cells that are repeated; empty for all of them.
        """
        began = time.monotonic()
        record = LaunchRecord(
            launch=name,
            block=planned.block,
            engine=planned.engine,
            cell=planned.cell,
            status="ok",
            seconds=0.0,
            replaces=replaces or msgspec.UNSET,
        )
        scenario = self._scenario
        options = config.options
        if planned.cell is not None:
            cells = [scenario.cells[planned.cell]]
            # Room for this cell alone: an engine that reserves its cache at load must not hold the largest one's.
            options = room_for(cells[0], scenario.sequences(cells[0]), options)
        else:
            cells = cells_in_block(scenario.cells, planned.block, self._seed)
            cells = [cell for cell in cells if scenario.offered(cell, config.label) and (not only or cell in only)]
        at = Place(planned, name, cells[0], replaces)
        launch: Launch | None = None
        try:
            weights = self._model
            with contextlib.suppress(ModelError):  # a file that this engine cannot be given fails in its load, below
                weights = file_for(config.plugin, self._model, extra=options.extra)
            cached = _file_cache(scenario, cells[0], weights)
        except LaunchFailure as refusal:
            # The machine could not be made ready: that is no load that failed, and no sample of the engine.
            record.status, record.error = refusal.status, f"{NOT_BEGUN}{refusal}"
            return record
        start_ns = clock.now_ns()
        try:
            launch = Launch(
                config.label,
                config.plugin,
                log=self._logs / f"{name}.log",
                options=options,
                environment={"CMP_LAUNCH": name},
            )
            self._telemetry.watch(name, launch.pid)
            with launch:
                loaded = launch.load(self._model, scenario.deadlines.load_seconds)
                if self._loaded is not None:
                    self._loaded(config.label, loaded)
                keep(
                    at.sample(
                        start_ns=loaded["start_ns"],
                        end_ns=loaded["end_ns"],
                        status="ok",
                        flags=_load_flags(scenario, launch, loaded),
                        metrics={**cached, **loaded["metrics"]},
                    )
                )
                for cell in cells:
                    at.cell = cell
                    reset_peak(launch.pid)
                    task = Task(
                        launch,
                        scenario,
                        self._model,
                        self._prompts,
                        self._seed,
                        at,
                        keep,
                        self._telemetry.flags,
                        self._judge,
                    )
                    measure_of(scenario, cell)(task)
                if scenario.kind == "requests":
                    check_repeated_prompt(task)
        except UnreadableSample as unreadable:
            record.status, record.error = "error", plain(str(unreadable), _REASON_CHARACTERS)
            keep(at.sample(start_ns=start_ns, end_ns=clock.now_ns(), status="error", error=str(unreadable)))
        except LaunchFailure as failure:
            record.status, record.error = failure.status, plain(str(failure), _REASON_CHARACTERS)
            keep(
                at.sample(
                    start_ns=max(start_ns, at.start_ns),
                    end_ns=clock.now_ns(),
                    status=failure.status,
                    error=str(failure),
                    output_tokens=failure.tokens,
                )
            )
        finally:
            self._telemetry.idle()
        record.notes = at.notes
        record.peak_rss_bytes = launch.peak_rss_bytes if launch else None
        record.seconds = time.monotonic() - began
        return record
