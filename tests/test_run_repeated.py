"""Launches that are repeated, blocks that are added, runs that are extended: decided by flags, never by a value."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine
from helpers import ONE_CELL, only_run, read_samples

from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.run.counting import Counting
from enginecmp.run.estimate import Pace, time_range
from enginecmp.run.extra import Budget
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.plan import plan_launches
from enginecmp.types import ModelInfo
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.launches import launch_means, measured
from enginecmp_analysis.data.load import load_runs

SCENARIO = f"""{ONE_CELL}[profile.full]
blocks = 3
requests = 4
replacement_requests = 0
warmup_requests = 1
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    """`cmp run` of two fake engines without the gate; time on top is no reason to stop."""
    path = tmp_path / "mini.toml"
    path.write_text(SCENARIO)
    words = ["run", "--scenario", str(path), "--model", tiny.path, "--seed", "5", "--no-gate", "--no-sensors"]
    return [*words, "--engines", "a=fake,b=fake", "-o", "a.clock=real", "-o", "b.clock=real"]


def launches_of(run: Path) -> list[tuple[str, str]]:
    return [(r.launch, "" if r.replaces is msgspec.UNSET else r.replaces) for r in finished_launches(run)]


def test_a_disturbed_launch_is_repeated_at_once_and_counts_once(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    done = cmp(*line, "-o", "a.disturbed=b1-a")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    launches = launches_of(run)
    assert len(launches) == 7
    assert launches[[name for name, _ in launches].index("b1-a") + 1] == ("b1-a.2", "b1-a")
    assert "again: the launch before was disturbed" in done.stderr
    of_it = [s for s in read_samples(run) if s.launch == "b1-a.2"]
    assert {s.replaces for s in of_it} == {"b1-a"}
    assert {s.block for s in of_it} == {1}
    loaded = load_runs([run])
    for flagged in (False, True):
        kept = [measured(loaded[0].columns, include_flagged=flagged)]
        means = launch_means(loaded, ["throughput_tokens_per_second", "load_seconds"], kept)
        for key, found in means.items():
            assert sorted(found.blocks) == [(0, 0), (0, 1), (0, 2)], key
    columns = loaded[0].columns
    assert "b1-a" not in {columns.launches[code] for code in columns.launch[columns.phase == MEASURE]}
    assert "1 disturbed launch was repeated; the repetition counts for a in block 2" in analyse(loaded).report.warnings


def test_a_repetition_that_is_disturbed_too_does_not_count_beside_the_first(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    done = cmp(*line, "-o", "a.disturbed=b1-a+b1-a.2", "--max-extra", "34%")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    assert ("b1-a.2", "b1-a") in launches_of(run)
    columns = load_runs([run])[0].columns
    # The first, unless the machine spared the other one some requests: never both.
    assert len({"b1-a", "b1-a.2"} & {columns.launches[code] for code in columns.launch}) == 1


def test_blocks_are_added_until_enough_launches_count(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "-o", "a.disturbed=b1-a+b1-a.2", "--max-extra", "1000%")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    assert Counter(r.block for r in finished_launches(run)) == {0: 2, 1: 3, 2: 2, 3: 2}, "one block on top, whole"
    assert read_manifest(run).scenario["blocks"] == 4
    assert "block 4 on top: launches that count are missing: a 1" in done.stderr


def test_nothing_is_added_where_nothing_ever_counts_or_nothing_may_be_added(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    every = "+".join(f"b{block}-a" for block in range(9))
    assert cmp(*line, "-o", f"a.disturbed={every}", "--max-extra", "0").returncode == 0
    assert len(launches_of(only_run(tmp_path / "results"))) == 6
    always = every + "+" + "+".join(f"b{block}-a.2" for block in range(9))
    assert cmp(*line, "-o", f"a.disturbed={always}", "--max-extra", "1000%", "--out", "more").returncode == 0
    found = launches_of(only_run(tmp_path / "more"))
    assert len(found) == 9, "half as many again at most, and no block for an engine that is always disturbed"


def test_a_run_is_extended_by_whole_blocks_under_the_same_conditions_only(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    done = cmp(*line, "--blocks", "2")
    run = only_run(tmp_path / "results")
    before = launches_of(run)
    assert done.returncode == 0, done.stderr
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    told = cmp("run", "--extend", run, "--blocks", "+2", "--dry-run")
    assert told.returncode == 0, told.stderr
    assert [words.split(":")[0] for words in told.stdout.splitlines() if words.startswith("block")] == [
        "block   3",
        "block   4",
    ]
    assert re.search(r"^about \d+.* of launches \(from earlier runs here\)$", told.stdout, re.MULTILINE)
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    longer = cmp("run", "--extend", run, "--blocks", "+2")
    assert longer.returncode == 0, longer.stderr
    launches = launches_of(run)
    assert launches[: len(before)] == before
    assert read_manifest(run).scenario["blocks"] == 4
    assert read_manifest(run).status == "complete"
    # The same plan as a run that was that long from the start.
    whole = cmp(*line, "--blocks", "4", "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    assert launches == launches_of(only_run(tmp_path / "whole"))

    manifest = read_manifest(run)
    manifest.environment["cpu"] = "Another 9000"
    (run / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    refused = cmp("run", "--extend", run, "--blocks", "+2")
    assert refused.returncode == 1
    assert "was made under other conditions: environment.cpu is" in refused.stderr
    assert launches_of(run) == launches
    assert cmp("run", "--extend", run, "--blocks", "3").returncode == 2
    assert "--extend results/ID" in cmp(*line, "--blocks", "+2").stderr
    assert cmp("run", "--extend", run).returncode == 2


def test_a_run_without_enough_launches_ends_with_the_command_that_finishes_it(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    Path(line[line.index("--scenario") + 1]).write_text(SCENARIO.replace("requests = 4", "requests = 10"))
    done = cmp(*line, "--blocks", "2")
    run = only_run(tmp_path / "results")
    last = done.stderr.splitlines()[-1]
    command = f"cmp run --extend results/{run.name} --blocks +8"
    assert last == f"1 of 1 comparisons withheld for lack of launches; go on with: {command}"
    assert cmp(*command.split()[1:]).returncode == 0
    assert {c.verdict for c in analyse(load_runs([run])).report.comparisons if c.primary}.isdisjoint({"withheld"})


def test_a_killed_run_is_resumed_with_its_repetition(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    assert cmp(*line, "-o", "a.disturbed=b1-a", "--blocks", "2").returncode == 0
    run = only_run(tmp_path / "results")
    whole = launches_of(run)
    cut = [name for name, _ in whole].index("b1-a.2")
    # As kill -9 in the midst of the repetition leaves it: some of its samples, no record.
    records, samples = (run / "launches.jsonl"), (run / "samples.jsonl")
    records.write_bytes(b"".join(records.read_bytes().splitlines(keepends=True)[:cut]))
    lines = samples.read_bytes().splitlines(keepends=True)
    begun = next(number for number, one in enumerate(lines) if b'"b1-a.2"' in one)
    samples.write_bytes(b"".join(lines[: begun + 3]))
    manifest = read_manifest(run)
    manifest.status = "running"
    (run / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    resumed = cmp("run", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    found = launches_of(run)
    assert [(name, replaced) for name, replaced in found if replaced] == [("b1-a.3", "b1-a")]
    assert [name.replace(".3", ".2") for name, _ in found] == [name for name, _ in whole]
    means = launch_means(load_runs([run]), ["throughput_tokens_per_second"], [measured(load_runs([run])[0].columns)])
    assert all(sorted(found.blocks) == [(0, 0), (0, 1)] for found in means.values())


def sample(launch: str, cell: Cell, index: int, *flags: str, phase: str = "measure", status: str = "ok") -> Sample:
    block, engine = launch[1:].split(".")[0].split("-")
    return Sample(
        block=int(block),
        order=0,
        launch=launch,
        engine=engine,
        cell=cell,
        index=index,
        phase=phase,  # type: ignore[arg-type]
        intended_ns=0,
        start_ns=0,
        token_ns=[],
        end_ns=1,
        prompt_tokens=1,
        output_tokens=1,
        status=status,  # type: ignore[arg-type]
        flags=list(flags),
    )


def scenario(*cells: Cell, kind: str = "requests", metric: str = "ttft_seconds", requests: int = 12) -> Scenario:
    return Scenario(
        name="s",
        profile="full",
        primary_metric=metric,
        kind=kind,  # type: ignore[arg-type]
        cells=cells,
        blocks=3,
        requests=requests,
    )


ALONE, MANY = Cell(1, 1), Cell(1, 1, 4)


@pytest.mark.parametrize(
    ("cell", "flags", "disturbed"),
    [
        (MANY, {0: "foreign_cpu"}, True),
        (MANY, {0: "gpu_throttled"}, True),
        (MANY, {0: "short_output"}, False),
        (ALONE, {0: "steal", 1: "steal"}, False),
        (ALONE, {0: "steal", 1: "steal", 2: "stalled"}, True),
        (ALONE, {}, False),
    ],
)
def test_what_spoils_a_launch(cell: Cell, flags: dict[int, str], disturbed: bool) -> None:
    found = Counting(scenario(cell), [sample("b0-a", cell, i, *filter(None, [flags.get(i)])) for i in range(12)])
    assert found.disturbed_cells("b0-a") == ([cell] if disturbed else [])


def test_a_failed_launch_is_never_repeated_for_a_better_one() -> None:
    lines = [sample("b0-a", MANY, i, "foreign_cpu") for i in range(11)] + [sample("b0-a", MANY, 11, status="crash")]
    assert Counting(scenario(MANY), lines).disturbed_cells("b0-a") == []


def test_bytes_are_not_spoilt_by_a_busy_neighbour() -> None:
    lines = [sample("b0-a", MANY, i, "foreign_cpu") for i in range(12)]
    assert Counting(scenario(MANY, metric="peak_rss_above_empty_bytes"), lines).disturbed_cells("b0-a") == []


def test_a_disturbed_load_is_repeated_though_its_request_was_not() -> None:
    cold = Cell(1, 1, variant="cold")
    lines = [sample("b0-a", cold, 0, "foreign_cpu", phase="load"), sample("b0-a", cold, 0)]
    asked = scenario(cold, kind="load", metric="load_seconds", requests=1)
    assert Counting(asked, lines).disturbed_cells("b0-a") == [cold]
    assert Counting(asked, lines[1:]).disturbed_cells("b0-a") == []


def test_what_lacks_is_told_by_the_worst_cell_that_ever_counted() -> None:
    lines = [sample(f"b{block}-a", ALONE, i) for block in range(3) for i in range(12)]
    lines += [sample("b0-a", MANY, i) for i in range(12)]
    lines += [sample(f"b{block}-a", MANY, i, "steal") for block in (1, 2) for i in range(12)]
    lines += [sample("b0-b", MANY, i, "steal") for i in range(12)]
    found = Counting(scenario(ALONE, MANY), lines)
    assert found.short(["a", "b"], blocks=3) == {"a": 2}
    assert found.short(["b"], blocks=3) == {}


def record(launch: str, seconds: float, replaces: str | None = None) -> LaunchRecord:
    block, engine = launch[1:].split(".")[0].split("-")
    return LaunchRecord(
        launch=launch,
        block=int(block),
        engine=engine,
        status="ok",
        seconds=seconds,
        replaces=msgspec.UNSET if replaces is None else replaces,
    )


def test_the_budget_is_half_the_launches_and_a_share_of_their_time() -> None:
    plan = plan_launches(["a", "b"], 2, seed=1)
    over = [record("b0-a", 10.0), record("b0-b", 2.0), record("b1-a", 10.0), record("b1-b", 2.0)]
    of = {planned.engine: planned for planned in plan}
    assert Budget(0.5, plan, over).allows_replacement(of["a"])
    once = Budget(0.5, plan, [*over, record("b1-a.2", 10.0, "b1-a")])
    assert once.replacements == 1
    assert not once.allows_replacement(of["a"]), "10 s + 10 s are more than half of 24 s"
    assert once.allows_replacement(of["b"])
    assert not once.allows([of["a"], of["b"]])
    twice = Budget(5.0, plan, [*over, record("b1-a.2", 1.0, "b1-a"), record("b1-b.2", 1.0, "b1-b")])
    assert not twice.allows_replacement(of["b"]), "two of four launches are repeated already"
    assert twice.allows([of["a"], of["b"]])
    assert not Budget(0.0, plan, over).allows_replacement(of["b"])


def test_nobody_is_told_that_a_run_takes_longer_than_it_may() -> None:
    plan = plan_launches(["a"], 100, seed=1)
    assert Pace(plan, [record("b0-a", 10.0)]).remaining_seconds() == 990.0
    bounded = Pace(plan, [record("b0-a", 10.0)], most_seconds=90.0)
    left = bounded.remaining_seconds()
    assert left is not None
    assert 0 < left <= 90.0
    assert bounded.describe().startswith("at most ")


@pytest.mark.parametrize(
    ("seconds", "extra", "text"),
    [
        (40.0, 0.0, "40 s"),
        (40.0, 0.5, "40 s – 60 s"),
        (360.0, 0.5, "6–9 min"),
        (7500.0, 0.5, "2 h 05 min – 3 h 07 min"),
    ],
)
def test_the_time_of_a_run_is_a_range(seconds: float, extra: float, text: str) -> None:
    assert time_range(seconds, extra) == text
