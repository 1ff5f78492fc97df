"""What a kind gets to measure one cell of one launch: the engine, the prompts, and a place to keep samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from enginecmp.format.records import Asked, Cell, Sample, SamplePhase, Status
from enginecmp.launch.launch import Launch
from enginecmp.measure.judged import JudgeProcess
from enginecmp.prompts import PromptSet
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch, prompt_key
from enginecmp.types import ModelInfo


class Place:
    """Where a launch is: what all samples of one moment have in common.

    Attributes:
        planned: block, position and label.
        name: of the launch.
        cell: the point of the grid.
        phase: load, warmup or measure.
        index: number of the next request in this cell and phase.
        start_ns: when what is under way began.
        notes: what a reader of the run should be told of the launch.
        replaces: name of the launch that this one repeats; empty where it is the first one.
        known_prefixes: (cell, number) of the shared prefixes that requests planned so far begin with.
        known_blocks: (cell, number) of a block of a trace that has been planned → ids up to its end.
    """

    def __init__(self, planned: PlannedLaunch, name: str, cell: Cell, replaces: str = "") -> None:
        self.planned = planned
        self.name = name
        self.replaces = replaces
        self.cell = cell
        self.phase: SamplePhase = "load"
        self.index = 0
        self.start_ns = 0
        self.notes: list[str] = []
        self.known_prefixes: set[tuple[Cell, int | None]] = set()
        self.known_blocks: dict[tuple[Cell, int], tuple[int, ...]] = {}
        self._next: dict[tuple[Cell, SamplePhase], int] = {}

    def enter(self, cell: Cell, phase: SamplePhase) -> None:
        """Go to a cell and phase, and count requests from 0 again."""
        self.cell, self.phase, self.index = cell, phase, 0

    def enter_behind(self, cell: Cell, phase: SamplePhase) -> None:
        """Go to a cell and phase again, and count on from its last sample."""
        self.cell, self.phase, self.index = cell, phase, self._next.get((cell, phase), 0)

    def sample(
        self,
        *,
        start_ns: int,
        end_ns: int,
        status: Status,
        intended_ns: int | None = None,
        token_ns: list[int] | None = None,
        prompt_tokens: int | None = None,
        output_tokens: int = 0,
        error: str | None = None,
        flags: Sequence[str] = (),
        metrics: dict[str, float] | None = None,
        asked: Asked | None = None,
    ) -> Sample:
        """Return a sample of this place.

        Without `intended_ns` it was meant to start when it did; without `prompt_tokens` the prompt is the cell's.
        """
        if prompt_tokens is None:
            prompt_tokens = 0 if self.phase == "load" else self.cell.prompt_tokens
        self._next[self.cell, self.phase] = self.index + 1
        return Sample(
            block=self.planned.block,
            order=self.planned.order,
            launch=self.name,
            engine=self.planned.engine,
            cell=self.cell,
            index=self.index,
            phase=self.phase,
            intended_ns=start_ns if intended_ns is None else intended_ns,
            start_ns=start_ns,
            token_ns=token_ns or [],
            end_ns=end_ns,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            status=status,
            error=error,
            flags=list(flags),
            metrics=metrics or {},
            replaces=self.replaces or msgspec.UNSET,
            asked=msgspec.UNSET if asked is None else asked,
        )


@dataclass(frozen=True, slots=True)
class Task:
    """One cell of one launch, ready to be measured.

    Attributes:
        launch: a worker with the model loaded.
        scenario: what to measure.
        model: the weights file.
        prompts: where prompts come from, the same ids for every engine.
        seed: of the run.
        at: where the launch is; a kind enters phases and counts requests here.
        keep: called with each sample; what it raises (a full disk) ends the launch and passes through.
        sensed: (start_ns, end_ns) → flags of what the sensors saw in that time; wakes nobody.
        judge: of a measurement that a plugin brought; None for those of `cmp`.
    """

    launch: Launch
    scenario: Scenario
    model: ModelInfo
    prompts: PromptSet
    seed: int
    at: Place
    keep: Callable[[Sample], None]
    sensed: Callable[[int, int], list[str]]
    judge: JudgeProcess | None = None

    def conditions(self, start_ns: int, end_ns: int) -> list[str]:
        """Return the flags of what was the matter in a time; wakes nobody."""
        return [*self.sensed(start_ns, end_ns), *self.launch.conditions(start_ns, end_ns)]

    def key(self, what: str, number: int) -> int:
        """Return the key of a prompt of this cell: the same for every engine of the block.

        Args:
            what: phase, or what else tells prompts with the same number apart.
            number: of the prompt.
        """
        cell_number = self.scenario.prompt_cell(self.at.cell)
        return prompt_key(self.at.planned.block, cell_number, what, number, self.seed)

    def prompt(self, index: int, length_tokens: int | None = None) -> tuple[int, ...]:
        """Return the prompt of a request of this cell and phase, the same for every engine of the block.

        Args:
            index: number of the request.
            length_tokens: of the prompt; None takes the cell's.
        """
        key = self.key(self.at.phase, index)
        return self.prompts.take(length_tokens or self.at.cell.prompt_tokens, key=key, seed=self.seed)
