"""`cmp compare` and saved baselines, as a CI job uses them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import CommandLine

from enginecmp.errors import ResultsError, UsageError
from enginecmp.results import baselines
from enginecmp.types import ModelInfo
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run

SCENARIO = """
name = "mini"
primary_metric = "decode_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 6
[profile.full]
blocks = 10
requests = 10
warmup_requests = 1
[validity]
# The fake clock stands still while the machine works, so shares of its windows mean nothing.
floor_seconds = 1000
"""


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    """`cmp run` of one fake engine, ten launches of ten requests."""
    (tmp_path / "mini.toml").write_text(SCENARIO)
    # The seed in the engine makes launches of two runs differ, as real ones do.
    return ["run", "--scenario", "./mini.toml", "--model", tiny.path, "--no-gate", "--engines", "a=fake", "--seed", "5"]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with runs "old", "same", "better", "worse" and "short"."""
    for seed, (name, slowdown, blocks) in enumerate(
        [("old", 1.0, 10), ("same", 1.0, 10), ("better", 0.8, 10), ("worse", 1.3, 10), ("short", 1.3, 5)]
    ):
        design = Design(seconds=0.1 * slowdown, blocks=blocks, launch_spread=0.01)
        write_run(simulate_run(design, seed=seed, engines=("a",), run_id=name), tmp_path)
    return tmp_path


def test_a_run_is_saved_compared_and_a_planted_regression_exits_3(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    first = cmp(*line, "--save-baseline", "main")
    assert first.returncode == 0, first.stderr
    assert "saved as baseline 'main'" in first.stderr
    saved = baselines.find(tmp_path / "results", "main")

    # Eight percent is above nothing: measured, shown, not failed.
    slower = cmp(*line, "-o", "a.decode_us=1080", "-o", "a.seed=1", "--baseline", "main")
    assert slower.returncode == 0, slower.stderr
    assert "passed: no regression is confirmed" in slower.stderr
    assert "changed: a options.extra.decode_us" in slower.stderr

    much_slower = cmp(*line, "-o", "a.decode_us=1300", "-o", "a.seed=2", "--baseline", "main", "--json")
    assert much_slower.returncode == 3, much_slower.stderr
    assert "FAILED: a regression is confirmed" in much_slower.stderr
    outcome = json.loads(much_slower.stdout)
    assert outcome["status"] == "complete"

    # What could not be compared afterwards is refused before it is measured.
    other = cmp(*line, "--requests", "11", "--baseline", "main")
    assert other.returncode == 2
    assert "scenario.requests is 11, was 10" in other.stderr

    again = cmp("compare", "main", outcome["folder"], "--json")
    assert again.returncode == 3, again.stderr
    report = json.loads(again.stdout)
    (found,) = report["lines"]
    assert report["base"] == [saved.name]
    assert (found["band"], found["confirmed"]) == ("critical", "CRITICAL")
    assert found["ci_low"] < 1.3 < found["ci_high"]


@pytest.mark.parametrize(
    ("new", "arguments", "code", "said"),
    [
        ("same", [], 0, "PASS"),
        ("better", [], 0, "PASS"),
        ("worse", [], 3, "CRITICAL"),
        ("worse", ["--critical", "40%"], 0, "WARNING"),
        ("worse", ["--critical", "40%", "--fail-on", "warning"], 3, "WARNING"),
        ("short", [], 0, "WITHHELD"),
    ],
)
def test_only_a_confirmed_regression_exits_3(
    cmp: CommandLine, runs: Path, new: str, arguments: list[str], code: int, said: str
) -> None:
    done = cmp("compare", "./old", f"./{new}", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("line", ["compare old worse --junit out", "report old -o out"])
def test_what_is_written_never_takes_the_place_of_a_pipe_or_of_a_link(
    cmp: CommandLine, tmp_path: Path, runs: Path, line: str
) -> None:
    os.mkfifo(tmp_path / "out")
    refused = cmp(*line.split())
    assert refused.returncode == 1
    assert "out: cannot be written (expected a regular file or nothing there, got a folder, FIFO" in refused.stderr
    assert (tmp_path / "out").is_fifo()
    (tmp_path / "out").unlink()
    (tmp_path / "out").symlink_to("elsewhere")
    assert cmp(*line.split()).returncode in (0, 3)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes().startswith(b"<")


def test_junit_is_written_beside_markdown_on_stdout(cmp: CommandLine, runs: Path) -> None:
    done = cmp("compare", "old", "worse", "--junit", "out.xml", "--markdown", "--metric", "e2e_seconds")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("### ❌ FAILED")
    assert len(list(ElementTree.parse(runs / "out.xml").iter("failure"))) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mian", "old"], 2, "no saved baseline 'mian' in results; did you mean 'main'?"),
        (["gone", "old"], 1, "baseline 'gone' is run lost, which is no longer in results"),
        (["./nowhere", "old"], 1, "nowhere: expected a run folder"),
        (["old", "same", "--critical", "5%"], 2, "expected 0 < warning < critical"),
        (["old", "same", "--metric", "e2e_second"], 2, "did you mean 'e2e_seconds'"),
        (["old", "old"], 1, "run old is on both sides"),
        (["old", "same", "--junit", "no/such/folder.xml"], 1, "folder.xml: cannot be written"),
    ],
)
def test_wrong_usage_is_one_line(cmp: CommandLine, runs: Path, arguments: list[str], code: int, said: str) -> None:
    (runs / "results").mkdir()
    (runs / "results" / baselines.BASELINES).write_text('{"main": "old", "gone": "lost"}')
    done = cmp("compare", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_neither_engine_nor_saved_is_refused_before_the_run(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    for arguments, said in (
        (["--baseline", "mian"], "not in this run, which has a, and not a saved run of results"),
        (["--save-baseline", "a"], "is an engine of this run"),
        (["--save-baseline", "../x"], "letters, digits"),
    ):
        done = cmp(*line, *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert not (tmp_path / "results").exists()


def test_history_is_a_table_or_json(cmp: CommandLine, runs: Path) -> None:
    done = cmp("stats", "--history", "old", "same", "worse")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a: throughput_tokens_per_second")
    content = json.loads(cmp("stats", "--history", "old", "same", "--json").stdout)
    assert [point["run_id"] for point in content["series"][0]["points"]] == ["old", "same"]
    refused = cmp("stats", "--history", "old", "--csv")
    assert refused.returncode == 2
    assert "not --csv" in refused.stderr


# --- the file of names ---------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


def test_a_saved_name_is_found_and_moves(results: Path) -> None:
    baselines.save(results, "main", results / "one")
    baselines.save(results, "v1", results / "one")
    baselines.save(results, "main", results / "two")
    assert baselines.names(results) == {"main": "two", "v1": "one"}
    assert baselines.find(results, "main") == results / "two"
    assert not list(results.glob("*.tmp"))


def test_a_run_of_another_folder_cannot_be_saved(results: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ResultsError, match="only runs of that folder"):
        baselines.save(results, "main", tmp_path_factory.mktemp("elsewhere") / "one")


def test_a_spoilt_file_of_names_says_so(results: Path) -> None:
    (results / baselines.BASELINES).write_text('{"main": 3}')
    with pytest.raises(ResultsError, match=r"baselines\.json: expected names and run ids"):
        baselines.find(results, "main")


def test_baseline_means_an_engine_before_a_saved_run(results: Path) -> None:
    baselines.save(results, "b", results / "one")
    baselines.save(results, "main", results / "two")
    assert baselines.engine_or_saved("b", ["a", "b"], results) == ("b", None)
    assert baselines.engine_or_saved("main", ["a", "b"], results) == ("a", results / "two")
    assert baselines.engine_or_saved(None, ["a", "pytorch_baseline"], results) == ("pytorch_baseline", None)
    with pytest.raises(UsageError, match="saved baselines: b, main"):
        baselines.engine_or_saved("mian", ["a"], results)
