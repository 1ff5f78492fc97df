"""Every launch of a run in turn: the planned ones, those that repeat a disturbed one, and further blocks.

What is repeated and added is decided by flags and failures alone, never by a value: see docs/METHODOLOGY.md.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.files import SAMPLES
from enginecmp.format.readers import whole_lines
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.results.writer import RunWriter, Torn
from enginecmp.run.counting import Counting
from enginecmp.run.drive import Driver
from enginecmp.run.estimate import Pace
from enginecmp.run.extra import Budget
from enginecmp.run.outcome import without_result
from enginecmp.run.request import RunRequest
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import PlannedLaunch, plan_launches


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a run.

    Attributes:
        folder: where it is.
        status: complete or interrupted.
        launches: how many are over.
        failed: failed launches, in order.
        flagged: measured samples left out, by flag.
        given_up: labels that failed too often to go on.
        without_result: label → why nothing that counts was measured of it.
        replacements: launches that repeated a disturbed one.
        extra_blocks: blocks that were run beyond the planned ones.
    """

    folder: Path
    status: str
    launches: int
    failed: list[LaunchRecord]
    flagged: dict[str, int]
    given_up: list[str]
    without_result: dict[str, str]
    replacements: int = 0
    extra_blocks: int = 0


def run_launches(
    request: RunRequest,
    driver: Driver,
    writer: RunWriter,
    over: list[LaunchRecord],
    torn: Torn,
    say: Callable[[str], None],
) -> Outcome:
    """Run what is still to be run.

    Args:
        request: what to do.
        driver: runs one launch.
        writer: of the run; its manifest is told how many blocks came of it.
        over: launches that ended before this start.
        torn: what an earlier start left unfinished.
        say: told one line at a time, while no engine is being measured.
    """
    return _Launches(request, driver, writer, over, torn, say).run()


class _Launches:
    """The state of a run between two launches; everything in it can be read back from disk."""

    def __init__(
        self,
        request: RunRequest,
        driver: Driver,
        writer: RunWriter,
        over: list[LaunchRecord],
        torn: Torn,
        say: Callable[[str], None],
    ) -> None:
        self._request, self._driver, self._writer, self._over, self._say = request, driver, writer, over, say
        scenario = self._scenario = request.scenario
        self._configs = {config.label: config for config in request.configs}
        self._labels = [
            label for label in self._configs if any(scenario.offered(cell, label) for cell in scenario.cells)
        ]
        plan = [planned for planned in self._blocks(scenario.blocks) if _offered(scenario, planned)]
        self._pace = Pace(plan, over, request.most_seconds)
        self._budget = Budget(scenario.max_extra, plan, over)
        self._counting = Counting(scenario, whole_lines(writer.folder / SAMPLES, Sample))
        self._taken = {*torn.launches, *(record.launch for record in over)}
        self._done = {record.key for record in over}
        self._flags: Counter[str] = Counter()
        self._failed = [record for record in over if record.status != "ok"]
        self._given_up: list[str] = []
        self._retired: Collection[str] = ()
        self._total = scenario.blocks

    def run(self) -> Outcome:
        """Run what is still to be run."""
        if self._planned():
            self._further()
        # What was planned beyond is not missing, and what came on top belongs to the run.
        self._writer.manifest.scenario["blocks"] = self._total
        return Outcome(
            folder=self._writer.folder,
            status="complete",
            launches=len(self._over),
            failed=self._failed,
            flagged=dict(self._flags),
            given_up=self._given_up,
            without_result=without_result(self._writer.folder, self._labels),
            replacements=self._budget.replacements,
            extra_blocks=max(0, self._total - self._scenario.blocks),
        )

    def _blocks(self, blocks: int) -> list[PlannedLaunch]:
        cells = len(self._scenario.cells) if self._scenario.launch_per_cell else None
        return plan_launches(self._labels, blocks, self._request.seed, cells)

    def _planned(self) -> bool:
        """Run the planned blocks; return whether all of them were wanted."""
        request, folder = self._request, self._writer.folder
        for planned in self._blocks(self._scenario.blocks):
            if planned.key in self._done:
                self._replace_last(planned)
                continue
            if planned.order == 0:
                if planned.block and request.block_over:
                    request.block_over()
                if planned.block >= LAUNCHES_NEEDED and request.enough and request.enough(folder):
                    self._total = planned.block
                    self._say(f"stopped after {planned.block} blocks: precise enough")
                    return False
                if request.retire:
                    self._retired = request.retire(folder, planned.block)
                    self._pace.without(self._retired)
                    if self._configs.keys() <= set(self._retired):
                        self._total = planned.block
                        return False
                if planned.block == 1:
                    # After one block already: nobody waits for hours for a run that measures nothing.
                    for label, why in without_result(folder, self._labels).items():
                        self._say(f"warning: {label}: nothing that counts was measured in the first block: {why}")
            self._launch(planned)
        if request.enough:
            why = "precise enough" if request.enough(folder) else "the most that were allowed, and not precise enough"
            self._say(f"stopped after {self._total} blocks: {why}")
        return True

    def _further(self) -> None:
        """Add whole blocks until every engine has the launches that a verdict takes, or the time for it is over."""
        for block in itertools.count(self._scenario.blocks):
            launches = [planned for planned in self._blocks(block + 1) if planned.block == block]
            if not any(record.block == block for record in self._over):
                alive = [label for label in self._labels if label not in self._given_up]
                short = self._counting.short(alive, self._scenario.blocks)
                if not short or not self._budget.allows([p for p in launches if _offered(self._scenario, p)]):
                    return
                missing = ", ".join(f"{label} {count}" for label, count in short.items())
                self._say(f"block {block + 1} on top: launches that count are missing: {missing}")
            self._total = block + 1
            for planned in launches:
                if planned.key in self._done:
                    self._replace_last(planned)
                else:
                    self._launch(planned)
            if self._request.block_over:
                self._request.block_over()

    def _launch(self, planned: PlannedLaunch) -> None:
        skipped = planned.engine in self._given_up or planned.engine in self._retired
        if skipped or not _offered(self._scenario, planned):
            return
        self._drive(planned)
        self._replace_last(planned)
        give_up(planned.engine, self._over, self._scenario, self._given_up, self._say)

    def _replace_last(self, planned: PlannedLaunch) -> None:
        """Repeat a launch that was disturbed, right after it: later it would no longer belong to its block."""
        last = self._over[-1]
        if last.key != planned.key or last.status != "ok" or last.replaces is not msgspec.UNSET:
            return
        cells = self._counting.disturbed_cells(last.launch)
        if cells and self._budget.allows_replacement(planned):
            self._drive(planned, last.launch, cells)

    def _drive(self, planned: PlannedLaunch, replaces: str = "", cells: Sequence[Cell] = ()) -> None:
        name = free_name(planned, self._taken)
        self._taken.add(name)
        record = self._driver.run(planned, self._configs[planned.engine], name, self._keep, replaces, cells)
        self._writer.end_launch(record)
        self._over.append(record)
        self._done.add(record.key)
        self._pace.ended(record)
        self._budget.ended(record)
        self._say(_progress(planned, record, max(self._total, planned.block + 1), self._pace))
        if record.status != "ok":
            self._failed.append(record)

    def _keep(self, sample: Sample) -> None:
        if sample.phase == "measure":
            self._flags.update(sample.flags)
        self._writer.append(sample)
        self._counting.add(sample)


def _offered(scenario: Scenario, planned: PlannedLaunch) -> bool:
    """Say whether a launch has anything to measure: a sweep spares engines rates far beyond what they can do."""
    return planned.cell is None or scenario.offered(scenario.cells[planned.cell], planned.engine)


def free_name(planned: PlannedLaunch, taken: Collection[str]) -> str:
    """Return how a launch is named; one that is done again has a new name."""
    name, number = planned.name, 2
    while name in taken:
        name = f"{planned.name}.{number}"
        number += 1
    return name


def give_up(
    engine: str, over: Sequence[LaunchRecord], scenario: Scenario, given_up: list[str], say: Callable[[str], None]
) -> None:
    """Put an engine among those given up, and say so, where its last launches all failed."""
    last = [record.status for record in over if record.engine == engine][-scenario.give_up_after :]
    if len(last) == scenario.give_up_after and "ok" not in last:
        given_up.append(engine)
        say(f"{engine}: given up after {scenario.give_up_after} failed launches in a row")


def ending(record: LaunchRecord) -> str:
    """Return how a launch ended, in one line: its time or its error, and what is to be known of it."""
    outcome = f"{record.seconds:5.1f} s" if record.status == "ok" else f"{record.status}: {record.error}"
    again = [] if record.replaces is msgspec.UNSET else ["again: the launch before was disturbed"]
    return "; ".join([outcome, *again, *record.notes])


def _progress(planned: PlannedLaunch, record: LaunchRecord, blocks: int, pace: Pace) -> str:
    return f"block {planned.block + 1}/{blocks}  {record.engine:<18} {ending(record)}  {pace.describe()}"
