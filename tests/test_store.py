"""`cmp export --parquet` and history over many runs: the same numbers as from the runs, without their requests."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from enginecmp.cli import export, stats
from enginecmp.errors import ResultsError, UsageError
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.lean import lean
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run

PRIMARY = "throughput_tokens_per_second"


def plant(results: Path, number: int, seconds: float = 0.1) -> Path:
    run = simulate_run(Design(blocks=6, seconds=seconds), seed=number, run_id=f"run-{number:02d}")
    run.manifest.created_utc = f"2026-03-{1 + number:02d}T08:00:00Z"
    return write_run(run, results)


def call(module: Any, *words: str | Path) -> Result:
    return CliRunner().invoke(module.command, [str(word) for word in words], catch_exceptions=False)


def history(*paths: Path, metric: str = "") -> Any:
    chosen = ["--metric", metric] if metric else []
    return json.loads(call(stats, "--history", "--json", *chosen, *paths).stdout)


def test_nothing_that_grows_with_requests_is_kept_of_a_run() -> None:
    (group,) = analyse([simulate_run(Design(blocks=6, requests=50))]).groups
    kept = lean(group, [PRIMARY])
    assert {metric for _, _, metric in kept.means} == {PRIMARY}
    assert len(kept.runs[0].columns) == 6
    assert len(kept.runs[0].columns.token_ns) == 0
    for key, launches in kept.means.items():
        assert len(launches.values) == 6
        assert launches.means.tolist() == group.means[key].means.tolist()


def test_history_leaves_copies_out(tmp_path: Path) -> None:
    for number in range(3):
        plant(tmp_path / "results", number)
    manifest = plant(tmp_path / "copies", 1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("run-01", "another-name"))
    found = history(tmp_path / "results", tmp_path / "copies")
    assert [point["run_id"] for point in found["series"][0]["points"]].count("run-01") <= 1
    assert len(found["series"][0]["points"]) == 3
    assert any("holds the same run as" in warning for warning in found["warnings"])


def test_a_store_without_duckdb_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "results", 1)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UsageError, match=r"pip install 'enginecmp\[store\]'"):
        call(export, "--parquet", tmp_path / "store", tmp_path / "results")
    assert not (tmp_path / "store").exists()


@pytest.fixture
def duckdb() -> Any:
    return pytest.importorskip("duckdb", reason="duckdb: not installed here; make store installs it")


@pytest.mark.parametrize("metric", ["", "e2e_seconds", "load_seconds"])
def test_history_of_a_store_is_that_of_its_runs(tmp_path: Path, duckdb: Any, metric: str) -> None:
    for number in range(12):
        plant(tmp_path / "results", number, seconds=0.1 if number < 6 else 0.13)
    call(export, "--parquet", tmp_path / "store", tmp_path / "results")
    expected = history(tmp_path / "results", metric=metric)
    assert history(tmp_path / "store", metric=metric) == expected
    points = [point for series in expected["series"] for point in series["points"]]
    assert [point["run_id"] for point in points if point["changed"]] == (
        [] if metric == "load_seconds" else ["run-06"] * 2
    )


def test_a_store_grows_and_takes_a_run_that_went_on_once(tmp_path: Path, duckdb: Any) -> None:
    for number in range(2):
        plant(tmp_path / "results", number)
    assert "2 runs written, 0 were there" in call(export, "--parquet", tmp_path / "store", tmp_path / "results").stderr
    longer = plant(tmp_path / "results", 2) / "samples.jsonl"
    longer = tmp_path / "results" / "run-01" / "samples.jsonl"
    longer.write_bytes(longer.read_bytes() + longer.read_bytes().splitlines(keepends=True)[-1])
    assert "2 runs written, 1 were there" in call(export, "--parquet", tmp_path / "store", tmp_path / "results").stderr
    assert "0 runs written, 3 were there" in call(export, "--parquet", tmp_path / "store", tmp_path / "results").stderr
    (series, _) = history(tmp_path / "store")["series"]
    assert [point["run_id"] for point in series["points"]] == ["run-00", "run-01", "run-02"]


def test_requests_are_there_for_other_tools(tmp_path: Path, duckdb: Any) -> None:
    folder = plant(tmp_path / "it's here", 1)
    call(export, "--parquet", tmp_path / "it's a store", folder)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    files = str(tmp_path / "it's a store" / "samples" / "*.parquet")
    rows = duckdb.execute(
        "SELECT engine, launch, block, phase, request, start_ns, end_ns, first_token_ns FROM read_parquet(?)", [files]
    ).fetchall()
    assert rows == [
        (
            *(line[name] for name in ("engine", "launch", "block", "phase", "index", "start_ns", "end_ns")),
            (line["token_ns"] or [-1])[0],
        )
        for line in lines
    ]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, duckdb: Any) -> None:
    plant(tmp_path / "results", 1)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="expected a new or empty folder, or a store"):
        call(export, "--parquet", tmp_path / "store", tmp_path / "results")


def test_a_damaged_store_is_told_in_one_line(tmp_path: Path, duckdb: Any) -> None:
    plant(tmp_path / "results", 1)
    call(export, "--parquet", tmp_path / "store", tmp_path / "results")
    (tmp_path / "store" / "runs" / "000001.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ResultsError, match="cannot be read as a store of runs"):
        history(tmp_path / "store")
