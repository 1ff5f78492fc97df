"""Drive one engine through one launch: load, warm up, measure, and hand every request out as a sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from enginecmp import clock
from enginecmp.launch import Contender, Launch, LaunchFailure
from enginecmp.plan import PlannedLaunch, cells_in_block, prompt_key
from enginecmp.prompts import PromptSet
from enginecmp.results import LaunchRecord
from enginecmp.scenarios import Scenario
from enginecmp.telemetry.contention import DISTURBED
from enginecmp.types import Cell, ModelInfo, Phase, Sample, Status

_ERRORS_IN_A_ROW = 3
"""After that many refused requests the rest of a launch would only repeat the message."""


class Driver:
    """Runs planned launches of one scenario on one model.

    Args:
        scenario: what to run.
        model: the weights file.
        prompts: where prompts come from, the same ids for every engine.
        seed: of the run.
        logs: folder for what engines print.
    """

    def __init__(self, scenario: Scenario, model: ModelInfo, prompts: PromptSet, seed: int, logs: Path) -> None:
        self._scenario = scenario
        self._model = model
        self._prompts = prompts
        self._seed = seed
        self._logs = logs

    def run(
        self, planned: PlannedLaunch, contender: Contender, name: str, keep: Callable[[Sample], None]
    ) -> LaunchRecord:
        """Launch an engine, run every cell, and pass each sample on before the next request starts.

        A failing engine never raises: it ends in the record and in one sample that says what happened.

        Args:
            planned: block, position and label.
            contender: the engine.
            name: of the launch, in samples and log.
            keep: called with each sample; what it raises (a full disk) ends the launch and passes through.
        """
        began = time.monotonic()
        record = LaunchRecord(launch=name, block=planned.block, engine=planned.engine, status="ok", seconds=0.0)
        cells = cells_in_block(self._scenario.cells, planned.block, self._seed)
        at = _Place(planned, name, cells[0])
        launch: Launch | None = None
        start_ns = clock.now_ns()
        try:
            launch = Launch(
                contender.label,
                contender.plugin,
                log=self._logs / f"{name}.log",
                options=contender.options,
                environment={"CMP_LAUNCH": name},
            )
            with launch:
                loaded = launch.load(self._model, self._scenario.deadlines.load_seconds)
                keep(
                    at.sample(
                        start_ns=loaded["start_ns"], end_ns=loaded["end_ns"], status="ok", metrics=loaded["metrics"]
                    )
                )
                for cell in cells:
                    at.enter(cell, "warmup")
                    self._requests(launch, at, keep)
                    at.enter(cell, "measure")
                    self._requests(launch, at, keep)
        except LaunchFailure as failure:
            record.status, record.error = failure.status, str(failure)
            keep(
                at.sample(
                    start_ns=max(start_ns, at.start_ns),
                    end_ns=clock.now_ns(),
                    status=failure.status,
                    error=str(failure),
                    output_tokens=failure.tokens,
                )
            )
        record.peak_rss_bytes = launch.peak_rss_bytes if launch else None
        record.seconds = time.monotonic() - began
        return record

    def _requests(self, launch: Launch, at: _Place, keep: Callable[[Sample], None]) -> None:
        """Run the requests of one cell and phase, by number or by time.

        A request that the rest of the machine disturbed is followed by a spare one while there are any.
        """
        scenario = self._scenario
        measuring = at.phase == "measure"
        wanted = scenario.requests if measuring else scenario.warmup_requests
        spare = scenario.spare_requests if measuring else 0
        until = time.monotonic() + (scenario.seconds or 0.0) if measuring else 0.0
        # Cut before the first request, so that the engine does not wait for the host between two of them.
        ready = [self._prompt(at, index) for index in range(wanted)]
        failures = 0
        while at.index < wanted or time.monotonic() < until:
            token_ids = ready[at.index] if at.index < len(ready) else self._prompt(at, at.index)
            at.start_ns = clock.now_ns()
            sample = self._request(launch, at, token_ids)
            keep(sample)
            failures = failures + 1 if sample.status != "ok" else 0
            if failures == _ERRORS_IN_A_ROW:
                msg = f"{sample.error} ({failures} requests in a row)"
                raise LaunchFailure(msg, status="error", phase=at.phase)
            at.index += 1
            if spare and not set(DISTURBED).isdisjoint(sample.flags):
                spare -= 1
                wanted += 1

    def _prompt(self, at: _Place, index: int) -> tuple[int, ...]:
        cell_number = self._scenario.cells.index(at.cell)
        key = prompt_key(at.planned.block, cell_number, at.phase, index, self._seed)
        return self._prompts.take(at.cell.prompt_tokens, key=key, seed=self._seed)

    def _request(self, launch: Launch, at: _Place, token_ids: tuple[int, ...]) -> Sample:
        try:
            answer = launch.request(token_ids, at.cell.output_tokens, self._scenario.deadlines)
        except LaunchFailure as failure:
            if failure.fatal:
                raise
            # The engine refused this prompt before the clock started (a round trip that fails, say).
            return at.sample(
                start_ns=at.start_ns, end_ns=clock.now_ns(), status="error", error=str(failure), output_tokens=0
            )
        error = answer["error"]
        metrics: dict[str, float] = answer["metrics"]
        wall_seconds = (answer["end_ns"] - answer["start_ns"]) / 1e9
        flags = self._scenario.validity.flags(metrics, wall_seconds)
        if error is None and answer["output_tokens"] != at.cell.output_tokens:
            flags.append("short_output" if answer["output_tokens"] < at.cell.output_tokens else "long_output")
        return at.sample(
            start_ns=answer["start_ns"],
            end_ns=answer["end_ns"],
            token_ns=answer["token_ns"],
            output_tokens=answer["output_tokens"],
            status="ok" if error is None else "error",
            error=None if error is None else f"{launch.label}: in {answer['where']}: {error['message']}",
            flags=flags,
            metrics=metrics,
        )


class _Place:
    """Where a launch is: what all samples of one moment have in common."""

    def __init__(self, planned: PlannedLaunch, name: str, cell: Cell) -> None:
        self.planned = planned
        self.name = name
        self.cell = cell
        self.phase: Phase = "load"
        self.index = 0
        self.start_ns = 0

    def enter(self, cell: Cell, phase: Phase) -> None:
        self.cell, self.phase, self.index = cell, phase, 0

    def sample(
        self,
        *,
        start_ns: int,
        end_ns: int,
        status: Status,
        token_ns: list[int] | None = None,
        output_tokens: int = 0,
        error: str | None = None,
        flags: list[str] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> Sample:
        return Sample(
            block=self.planned.block,
            order=self.planned.order,
            launch=self.name,
            engine=self.planned.engine,
            cell=self.cell,
            index=self.index,
            phase=self.phase,
            intended_ns=start_ns,
            start_ns=start_ns,
            token_ns=token_ns or [],
            end_ns=end_ns,
            prompt_tokens=0 if self.phase == "load" else self.cell.prompt_tokens,
            output_tokens=output_tokens,
            status=status,
            error=error,
            flags=flags or [],
            metrics=metrics or {},
        )
