"""The launches of a search for the largest load that keeps an SLO: block by block, at loads that follow from the data.

Which loads come next is a function of what is on disk of earlier blocks, handed in from outside (the statistics belong
to the analysis). So a search that was cut off goes on as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from enginecmp.format.files import SAMPLES
from enginecmp.format.readers import whole_lines
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.results.writer import RunWriter, Torn
from enginecmp.run.counting import Counting
from enginecmp.run.drive import Driver
from enginecmp.run.extra import MOST_REPLACEMENTS
from enginecmp.run.launches import Outcome, ending, free_name, give_up
from enginecmp.run.outcome import without_result
from enginecmp.run.request import RunRequest
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.find_max import at_load, load_of
from enginecmp.scenarios.plan import PlannedLaunch, plan_launches


def search_launches(
    request: RunRequest,
    driver_of: Callable[[Scenario], Driver],
    writer: RunWriter,
    over: list[LaunchRecord],
    torn: Torn,
    say: Callable[[str], None],
) -> Outcome:
    """Run launches until every engine's limit is confirmed from both sides, or its launches are used up.

    Args:
        request: with `next_loads`.
        driver_of: returns what runs a launch of a scenario, whose cells grow as the search goes on.
        writer: of the run; its manifest holds the cells that were needed.
        over: launches that ended before this start.
        torn: what an earlier start left unfinished.
        say: told one line at a time, while no engine is being measured.
    """
    return _Search(request, driver_of, writer, over, torn, say).run()


class _Search:
    """The state of a search between two launches; everything in it can be read back from disk."""

    def __init__(
        self,
        request: RunRequest,
        driver_of: Callable[[Scenario], Driver],
        writer: RunWriter,
        over: list[LaunchRecord],
        torn: Torn,
        say: Callable[[str], None],
    ) -> None:
        self._request, self._driver_of, self._writer, self._over, self._say = request, driver_of, writer, over, say
        self._scenario = request.scenario
        self._driver = driver_of(request.scenario)
        self._configs = {config.label: config for config in request.configs}
        self._counting = Counting(request.scenario, whole_lines(writer.folder / SAMPLES, Sample))
        self._done = {record.key for record in over}
        self._taken = {*torn.launches, *(record.launch for record in over)}
        self._flags: Counter[str] = Counter()
        self._given_up: list[str] = []

    def run(self) -> Outcome:
        """Run what is still to be run."""
        block = 0
        while block < self._scenario.blocks and (cells := self._next(block)):
            self._block(block, cells)
            block += 1
            if self._request.block_over:
                self._request.block_over()
        self._writer.manifest.scenario["blocks"] = block
        return Outcome(
            folder=self._writer.folder,
            status="complete",
            launches=len(self._over),
            failed=[record for record in self._over if record.status != "ok"],
            flagged=dict(self._flags),
            given_up=self._given_up,
            without_result=without_result(self._writer.folder, list(self._configs)),
            replacements=self._replacements(),
        )

    def _next(self, block: int) -> dict[str, list[Cell]]:
        """Return the cells of the next block by label, none where the search is over, and write down new ones."""
        scenario, find_max, ask = self._scenario, self._scenario.find_max, self._request.next_loads
        assert find_max
        assert ask is not None
        loads = ask(self._writer.folder, block, [label for label in self._configs if label not in self._given_up])
        cells = {
            label: [at_load(scenario.cells[0], find_max, load) for load in wanted]
            for label, wanted in loads.items()
            if wanted
        }
        new = dict.fromkeys(cell for own in cells.values() for cell in own if cell not in scenario.cells)
        if new:
            self._scenario = msgspec.structs.replace(scenario, cells=(*scenario.cells, *new))
            self._driver = self._driver_of(self._scenario)
            self._writer.manifest.scenario["cells"] = msgspec.to_builtins(self._scenario.cells)
            self._writer.write_manifest()
        return cells

    def _block(self, block: int, cells: Mapping[str, Sequence[Cell]]) -> None:
        for planned in plan_launches(list(cells), block + 1, self._request.seed):
            if planned.block != block:
                continue
            if planned.key not in self._done:
                self._drive(planned, cells[planned.engine])
                give_up(planned.engine, self._over, self._scenario, self._given_up, self._say)
            self._replace_last(planned)

    def _replace_last(self, planned: PlannedLaunch) -> None:
        """Repeat a launch that was disturbed, right after it: an empty one costs the search a whole block."""
        last = self._over[-1]
        if last.key != planned.key or last.status != "ok" or last.replaces is not msgspec.UNSET:
            return
        cells = self._counting.disturbed_cells(last.launch)
        if cells and self._replacements() < max(1.0, MOST_REPLACEMENTS * len(self._done)):
            self._drive(planned, cells, last.launch)

    def _replacements(self) -> int:
        return sum(record.replaces is not msgspec.UNSET for record in self._over)

    def _drive(self, planned: PlannedLaunch, cells: Sequence[Cell], replaces: str = "") -> None:
        name = free_name(planned, self._taken)
        self._taken.add(name)
        config = with_room(self._configs[planned.engine], cells)
        record = self._driver.run(planned, config, name, self._keep, replaces, cells)
        self._writer.end_launch(record)
        self._over.append(record)
        self._done.add(record.key)
        self._say(_progress(record, cells, self._scenario.find_max))

    def _keep(self, sample: Sample) -> None:
        if sample.phase == "measure":
            self._flags.update(sample.flags)
        self._writer.append(sample)
        self._counting.add(sample)


def with_room(config: EngineConfig, cells: Sequence[Cell]) -> EngineConfig:
    """Return an engine's config with room for the loads of one launch alone."""
    most = max(cell.concurrency for cell in cells)
    options = config.options
    return msgspec.structs.replace(
        config, options=msgspec.structs.replace(options, max_sequences=max(1, min(most, options.max_sequences)))
    )


def _progress(record: LaunchRecord, cells: Sequence[Cell], find_max: str) -> str:
    unit = "users" if find_max == "concurrency" else "requests/s"
    told = " and ".join(f"{load_of(cell, find_max):g}" for cell in cells)
    return f"block {record.block + 1}  {record.engine:<18} {told} {unit}  {ending(record)}"
