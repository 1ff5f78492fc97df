"""Reading run folders: what is found, what is refused and how it is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginecmp.errors import ResultsError
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import ColumnBuilder
from enginecmp_analysis.data.fingerprint import group_runs
from enginecmp_analysis.data.load import find_runs, load_run, load_runs
from enginecmp_analysis.data.simulate import Design, samples, simulate_run, write_run
from enginecmp_analysis.render.export import to_json, to_markdown


def _run_folder(tmp_path: Path, seed: int = 1) -> Path:
    return write_run(simulate_run(Design(blocks=2, requests=3), seed=seed), tmp_path)


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_written_run_reads_back_as_the_same_samples(tmp_path: Path) -> None:
    run = simulate_run(Design(blocks=3, requests=4))
    back = load_run(write_run(run, tmp_path))
    assert back.manifest == run.manifest
    assert samples(back.columns) == samples(run.columns)
    assert back.warnings == ()


def test_long_runs_are_read_in_pieces_without_losing_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = samples(simulate_run(Design(blocks=3, requests=4)).columns)
    monkeypatch.setattr("enginecmp_analysis.data.columns._CHUNK", 7)
    builder = ColumnBuilder()
    for row in rows:
        builder.add(row)
    assert samples(builder.build()) == rows


def test_a_folder_of_runs_a_run_and_a_file_of_a_run_name_the_same_run_once(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    assert len(load_runs([tmp_path, folder, folder / "samples.jsonl"])) == 1


def test_runs_come_in_the_order_of_their_creation(tmp_path: Path) -> None:
    for seed in (3, 1, 2):
        _run_folder(tmp_path, seed)
    assert [run.manifest.run_id for run in load_runs([tmp_path])] == ["sim-1", "sim-2", "sim-3"]


def test_a_path_without_a_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"expected manifest\.json in it or in a folder below.*cmp run"):
        find_runs(tmp_path)
    with pytest.raises(ResultsError, match="found nothing"):
        find_runs(tmp_path / "absent")


def test_a_torn_last_line_is_dropped_with_a_note(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    whole = len(load_run(folder).columns)
    path = folder / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    run = load_run(folder)
    assert len(run.columns) == whole - 1
    assert run.warnings == (f"{folder.name}/samples.jsonl: dropped the torn last line, {whole}",)


@pytest.mark.parametrize("given", [".", "absolute", "results", "results/sim-1", "results/sim-1/manifest.json"])
def test_what_is_said_of_a_run_names_nothing_above_it_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    folder = _run_folder(tmp_path / "results")
    lines = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    (folder / "samples.jsonl").write_text("".join([*lines, lines[-1], lines[-1][:-9]]))
    (folder / "telemetry.jsonl").write_text("no reading\n")
    monkeypatch.chdir(folder if given == "." else tmp_path)
    runs = load_runs([tmp_path / "results" if given == "absolute" else given])
    assert len(runs[0].warnings) == 3
    analysis = analyse(runs)
    for form in (to_json(analysis.report), to_markdown(analysis), *runs[0].warnings):
        assert str(tmp_path) not in form
    assert all("sim-1/" in warning for warning in runs[0].warnings)


@pytest.mark.parametrize(
    "bad",
    [b"{}\n", b"\n", b"not json\n", b'{"block":"zero"}\n', b"\xff\xfe\n", b"[" * 2000 + b"\n"],
    ids=["empty object", "blank", "no JSON", "wrong type", "no UTF-8", "deep nesting"],
)
def test_a_bad_line_names_its_file_and_number(tmp_path: Path, bad: bytes) -> None:
    folder = _run_folder(tmp_path)
    path = folder / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], bad, *lines[4:]]))
    with pytest.raises(ResultsError, match=r"samples\.jsonl, line 5: not a sample"):
        load_run(folder)


def test_a_bad_last_line_with_its_newline_is_no_torn_write(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    with (folder / "samples.jsonl").open("ab") as file:
        file.write(b'{"block": 1\n')
    with pytest.raises(ResultsError, match="line 17: not a sample"):
        load_run(folder)


def test_a_sample_of_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace('"engine":"engine"', '"engine":"stranger"'))
    with pytest.raises(ResultsError, match=r"line \d+: .*engine 'stranger' is not in the manifest"):
        load_run(folder)


def test_stamps_of_a_crashed_request_are_not_judged(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = json.dumps(json.loads(lines[6]) | {"end_ns": 1, "status": "crash", "error": "killed"})
    path.write_text("\n".join(lines) + "\n")
    assert load_run(folder).columns.reasons == ("", "crash")


def test_a_number_beyond_64_bits_names_its_line(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines()
    lines[6] = json.dumps(json.loads(lines[6]) | {"end_ns": 2**63})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ResultsError, match="line 7: not a sample"):
        load_run(folder)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    _edit(folder, schema="enginecmp/2")
    with pytest.raises(ResultsError, match="expected schema 'enginecmp/1', got 'enginecmp/2'"):
        load_run(folder)


def test_a_manifest_that_lacks_a_field_names_it(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    (folder / "manifest.json").write_text('{"schema": "enginecmp/1"}')
    with pytest.raises(ResultsError, match="missing required field `run_id`"):
        load_run(folder)


def test_a_killed_run_is_read_and_says_so(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    _edit(folder, status="running")
    (note,) = load_run(folder).warnings
    assert "was killed, or is still going on" in note


def test_a_run_without_samples_is_read_and_says_so(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    (folder / "samples.jsonl").unlink()
    run = load_run(folder)
    assert len(run.columns) == 0
    assert "nothing was measured" in run.warnings[-1]


def test_more_blocks_and_longer_deadlines_are_the_same_measurement(tmp_path: Path) -> None:
    for seed, blocks in ((1, 10), (2, 20)):
        scenario = {"name": "s", "blocks": blocks, "deadlines": {"load_seconds": blocks}, "requests": 10}
        _edit(_run_folder(tmp_path, seed), scenario=scenario)
    assert len(group_runs(load_runs([tmp_path]))[0]) == 1


def test_sweeps_of_two_days_are_pooled_although_their_rates_differ_and_other_grids_are_not(tmp_path: Path) -> None:
    for seed, rate in ((1, 2.0), (2, 2.1)):
        cell = {"prompt_tokens": 50, "output_tokens": 16, "concurrency": 1, "rate_per_second": rate}
        scenario = {"name": "s", "cells": [cell], "calibration": {"a": 2 * rate}, "offered_load": [0.5]}
        _edit(_run_folder(tmp_path, seed), scenario=scenario)
    assert len(group_runs(load_runs([tmp_path]))[0]) == 1
    for folder in tmp_path.iterdir():
        scenario = json.loads((folder / "manifest.json").read_text())["scenario"]
        _edit(folder, scenario=scenario | {"offered_load": []})
    assert len(group_runs(load_runs([tmp_path]))[0]) == 2


def test_repetitions_on_one_machine_are_pooled(tmp_path: Path) -> None:
    _edit(_run_folder(tmp_path, 1), environment={"cpu": "x", "available_bytes": 1})
    _edit(_run_folder(tmp_path, 2), environment={"cpu": "x", "available_bytes": 2})
    groups, warnings = group_runs(load_runs([tmp_path]))
    assert [len(group.runs) for group in groups] == [2]
    assert warnings == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"environment": {"cpu": "simulated", "cores": 2, "gpu": {"driver": "570"}}}, "environment.gpu.driver"),
        ({"model": {"name": "simulated-model", "sha256": "1" * 64, "quantization": "Q8_0"}}, "model sha256"),
        (
            {"engines": [{"name": "baseline", "version": "2.0"}, {"name": "engine", "version": "1.0"}]},
            "baseline version",
        ),
        ({"scenario": {"name": "simulated"}}, "scenario.cells"),
    ],
)
def test_runs_that_differ_are_kept_apart_and_the_difference_is_named(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    _run_folder(tmp_path, 1)
    _edit(_run_folder(tmp_path, 2), **change)
    groups, (warning, *_) = group_runs(load_runs([tmp_path]))
    assert [len(group.runs) for group in groups] == [1, 1]
    assert warning.startswith("run sim-2 is not pooled with sim-1: ")
    assert told in warning
