"""The launches of a search for the largest load that keeps an SLO: block by block, at loads that follow from the data.

Which loads come next is a function of what is on disk of earlier blocks, handed in from outside (the statistics belong
to the analysis). So a search that was cut off goes on as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.results.writer import RunWriter, Torn
from enginecmp.run.drive import Driver
from enginecmp.run.launches import Outcome, ending, free_name, give_up
from enginecmp.run.outcome import without_result
from enginecmp.run.request import RunRequest
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.find_max import at_load
from enginecmp.scenarios.plan import plan_launches


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
    assert request.next_loads is not None
    scenario, manifest = request.scenario, writer.manifest
    assert scenario.find_max
    configs = {config.label: config for config in request.configs}
    done = {record.key for record in over}
    taken = {*torn.launches, *(record.launch for record in over)}
    flags: Counter[str] = Counter()
    given_up: list[str] = []

    def keep(sample: Sample) -> None:
        if sample.phase == "measure":
            flags.update(sample.flags)
        writer.append(sample)

    block = 0
    while block < scenario.blocks:
        loads = request.next_loads(writer.folder, block, [label for label in configs if label not in given_up])
        cells = {
            label: [at_load(scenario.cells[0], scenario.find_max, load) for load in wanted]
            for label, wanted in loads.items()
            if wanted
        }
        if not cells:
            break
        new = dict.fromkeys(cell for own in cells.values() for cell in own if cell not in scenario.cells)
        if new:
            scenario = msgspec.structs.replace(scenario, cells=(*scenario.cells, *new))
            manifest.scenario["cells"] = msgspec.to_builtins(scenario.cells)
            writer.write_manifest()
        driver = driver_of(scenario)
        for planned in plan_launches(list(cells), block + 1, request.seed):
            if planned.block != block or planned.key in done:
                continue
            config = with_room(configs[planned.engine], cells[planned.engine])
            name = free_name(planned, taken)
            record = driver.run(planned, config, name, keep, "", cells[planned.engine])
            taken.add(name)
            writer.end_launch(record)
            over.append(record)
            done.add(record.key)
            say(_progress(record, loads[planned.engine], scenario.find_max))
            give_up(planned.engine, over, scenario, given_up, say)
        block += 1
    manifest.scenario["blocks"] = block
    return Outcome(
        folder=writer.folder,
        status="complete",
        launches=len(over),
        failed=[record for record in over if record.status != "ok"],
        flagged=dict(flags),
        given_up=given_up,
        without_result=without_result(writer.folder, list(configs)),
    )


def with_room(config: EngineConfig, cells: Sequence[Cell]) -> EngineConfig:
    """Return an engine's config with room for the loads of one launch alone."""
    most = max(cell.concurrency for cell in cells)
    options = config.options
    return msgspec.structs.replace(
        config, options=msgspec.structs.replace(options, max_sequences=max(1, min(most, options.max_sequences)))
    )


def _progress(record: LaunchRecord, loads: Sequence[float], find_max: str) -> str:
    unit = "users" if find_max == "concurrency" else "requests/s"
    told = " and ".join(f"{load:g}" for load in loads)
    return f"block {record.block + 1}  {record.engine:<18} {told} {unit}  {ending(record)}"
