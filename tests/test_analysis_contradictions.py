"""Lines that are well-formed and cannot be: nothing of them is counted, and each is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginecmp.errors import ResultsError
from enginecmp.format.files import LAUNCHES, MANIFEST, SAMPLES, TELEMETRY
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import load_run, load_runs
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.judge.judge import Options

Line = dict[str, Any]


def _written(tmp_path: Path, **design: Any) -> Path:
    return write_run(simulate_run(Design(blocks=10, requests=10, ratio=1.09, **design)), tmp_path)


def _lines(folder: Path) -> list[Line]:
    return [json.loads(line) for line in (folder / SAMPLES).read_text().splitlines()]


def _rewrite(folder: Path, lines: list[Line]) -> None:
    (folder / SAMPLES).write_text("".join(json.dumps(line) + "\n" for line in lines))


def _ratio(folder: Path) -> float:
    report = analyse(load_runs([folder])).report
    return next(c.ratio for c in report.comparisons if c.primary)


@pytest.mark.parametrize(
    "more",
    [
        lambda lines: lines,
        lambda lines: [line for line in lines if line["engine"] == "engine" and line["phase"] == "measure"],
        lambda lines: lines[17:18],
        lambda lines: lines * 2,
    ],
    ids=["the whole file", "one engine", "one line", "the whole file twice"],
)
def test_lines_that_are_repeated_count_once(tmp_path: Path, more: Callable[[list[Line]], list[Line]]) -> None:
    folder = _written(tmp_path)
    before, lines = _ratio(folder), _lines(folder)
    again = more(lines)
    _rewrite(folder, lines + again)
    assert _ratio(folder) == before
    (note,) = load_run(folder).warnings
    assert f"{len(again)} line" in note
    assert "counted once: line 221 is request" in note
    assert "a second time" in note


def test_a_copy_of_a_run_counts_once(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    (renamed / MANIFEST).write_text((renamed / MANIFEST).read_text().replace("sim-1", "sim-9"))
    (run,) = load_runs([tmp_path])
    assert len(run.columns) == 220
    assert sum("holds the same run" in note for note in run.warnings) == 2


def test_of_two_copies_of_a_run_the_one_that_went_on_stays(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    shutil.copytree(folder, tmp_path / "a-short-copy")
    _rewrite(tmp_path / "a-short-copy", _lines(folder)[:44])
    (run,) = load_runs([tmp_path])
    assert len(run.columns) == 220


WRONG = {
    "backwards": ({"end_ns": 1}, "expected intended_ns <= start_ns <= token_ns (rising) <= end_ns"),
    "due after the start": ({"intended_ns": 2**60}, "expected intended_ns <= start_ns <= token_ns (rising) <= end_ns"),
    "tokens backwards": ({"token_ns": [5, 4]}, "expected intended_ns <= start_ns <= token_ns (rising) <= end_ns"),
    "wraps": ({"start_ns": -(2**63) + 1, "intended_ns": -(2**63) + 1}, "differences overflow"),
    "wraps at the end": ({"end_ns": 2**63 - 1}, "differences overflow"),
    "wraps in a token": ({"token_ns": [-(2**62), 2**62]}, "differences overflow"),
    "negative block": ({"block": -1}, "a negative block, order, index or token count"),
    "negative order": ({"order": -1}, "a negative block, order, index or token count"),
    "negative index": ({"index": -3}, "a negative block, order, index or token count"),
    "negative tokens": ({"output_tokens": -16, "token_ns": []}, "a negative block, order, index or token count"),
    "too many tokens": ({"output_tokens": 8 * 10**12}, "a token count of 2147483648 or more"),
    "too long a prompt": ({"prompt_tokens": 8 * 10**12}, "a token count of 2147483648 or more"),
    "more stamps than tokens": ({"output_tokens": 3}, "more token stamps than output tokens"),
    "negative cell": (
        {"cell": {"prompt_tokens": -50, "output_tokens": 16, "concurrency": 1}},
        "a cell with a negative",
    ),
    "no rate": (
        {"cell": {"prompt_tokens": 50, "output_tokens": 16, "arrival": "poisson", "rate_per_second": -1.0}},
        "a cell with a negative",
    ),
    "endless cell": ({"cell": {"prompt_tokens": 50, "output_tokens": 16, "concurrency": 10**300}}, "impossible number"),
    "endless output": (
        {"cell": {"prompt_tokens": 50, "output_tokens": 10**300, "concurrency": 1}},
        "a cell with a negative or impossible number",
    ),
    "another prompt": ({"prompt_tokens": 500}, "a prompt of another length than its cell's"),
    "another block": ({"block": 7}, "one launch in several blocks"),
    "another engine": ({"engine": "baseline"}, "one launch of several engines"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_a_launch_that_contradicts_itself_is_left_out_and_named(tmp_path: Path, change: Line, reason: str) -> None:
    folder = _written(tmp_path)
    lines = _lines(folder)
    row = next(i for i, line in enumerate(lines) if line["launch"] == "b3-engine" and line["index"] == 4)
    lines[row] |= change
    _rewrite(folder, lines)
    run = load_run(folder)
    (note,) = run.warnings
    # Of a launch with two blocks or engines nothing tells which of its lines is wrong, so its first one is named.
    first = next(i for i, line in enumerate(lines) if line["launch"] == "b3-engine")
    where = first if reason.startswith("one launch") else row
    assert note.startswith(f"{folder.name}/{SAMPLES}, line {where + 1}: ")
    assert reason in note
    assert note.endswith("launch b3-engine is left out")
    assert len(run.columns) == 220 - 11
    report = analyse([run]).report
    assert note in report.warnings
    assert {s.n_launches for s in report.summaries if s.engine == "engine"} == {9}
    assert all(s.mean > 0 for s in report.summaries)


def test_a_launch_that_was_copied_under_another_name_counts_once(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    before, lines = _ratio(folder), _lines(folder)
    copied = [line | {"launch": "b3-copy", "block": 11} for line in lines if line["launch"] == "b3-engine"]
    _rewrite(folder, [*lines, *copied])
    (note,) = load_run(folder).warnings
    assert note.endswith("line 222: a request with the stamps of one in another launch: launch b3-copy is left out")
    assert _ratio(folder) == before


def test_two_users_may_have_two_requests_at_once_and_no_third(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    lines = [line | {"cell": line["cell"] | {"concurrency": 2}} for line in _lines(folder)]
    rows = [i for i, line in enumerate(lines) if line["launch"] == "b3-engine" and line["phase"] == "measure"]
    begin = lines[rows[0]]["start_ns"]
    lines[rows[1]] |= {"intended_ns": begin, "start_ns": begin}
    _rewrite(folder, lines)
    assert load_run(folder).warnings == ()
    lines[rows[2]] |= {"intended_ns": begin, "start_ns": begin}
    _rewrite(folder, lines)
    (note,) = load_run(folder).warnings
    assert note.endswith("more requests at once than the cell has users: launch b3-engine is left out")


def test_a_size_below_zero_is_absent(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    metrics = {"rss_bytes": -1.0, "peak_rss_bytes": -5.0, "empty_rss_bytes": 9.0}
    _rewrite(folder, [line | {"metrics": metrics} for line in _lines(folder)])
    columns = load_run(folder).columns
    assert not (columns.metric("peak_rss_bytes") >= -5.0).any()
    assert all(s.mean > 0 for s in analyse(load_runs([folder])).report.summaries)


def test_one_request_with_two_different_values_spoils_its_launch(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    lines = _lines(folder)
    other = lines[30] | {"end_ns": lines[30]["end_ns"] + 1}
    _rewrite(folder, [*lines, other])
    (note,) = load_run(folder).warnings
    assert "line 221: one request twice with different values" in note
    assert other["launch"] in note


def test_many_launches_with_one_fault_are_counted(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    _rewrite(folder, [line | ({"end_ns": 1} if line["engine"] == "engine" else {}) for line in _lines(folder)])
    run = load_run(folder)
    assert len(run.warnings) == 4
    rule = "expected intended_ns <= start_ns <= token_ns (rising) <= end_ns"
    assert run.warnings[3].endswith(f"7 more launches are left out: {rule}")
    assert len(run.columns) == 110


@pytest.mark.parametrize(("tokens", "flag"), [(15, "short_output"), (17, "long_output"), (2**31 - 1, "long_output")])
def test_another_output_length_than_the_cells_is_flagged(tmp_path: Path, tokens: int, flag: str) -> None:
    folder = _written(tmp_path)
    lines = _lines(folder)
    lines[30] |= {"output_tokens": tokens, "token_ns": lines[30]["token_ns"][:15]}
    _rewrite(folder, lines)
    run = load_run(folder)
    assert run.columns.flagged(flag).nonzero()[0].tolist() == [30]
    assert run.warnings[0].endswith(f"line 31 has {tokens} tokens, expected 16")


def test_imported_requests_may_be_of_any_length(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["scenario"] |= {"source_tool": "vllm"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    lines = _lines(folder)
    lines[30] |= {"output_tokens": 20}
    _rewrite(folder, lines)
    assert load_run(folder).warnings == ()


def test_a_metric_that_is_no_number_is_absent(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    lines = _lines(folder)
    lines[30] |= {"metrics": {"rss_bytes": None, "peak_rss_bytes": 7.0}}
    _rewrite(folder, lines)
    columns = load_run(folder).columns
    assert "rss_bytes" not in columns.metrics
    assert columns.metric("peak_rss_bytes")[30] == 7.0


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _directory(path: Path) -> None:
    path.mkdir()


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


@pytest.mark.parametrize("name", [MANIFEST, SAMPLES, TELEMETRY])
@pytest.mark.parametrize(
    ("make", "told"),
    [(_fifo, "a FIFO"), (_device, "a device"), (_directory, "a folder"), (_sparse, f"bytes, got {2**40}")],
)
def test_special_files_are_refused_before_reading(
    tmp_path: Path, name: str, make: Callable[[Path], None], told: str
) -> None:
    folder = _written(tmp_path)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ResultsError, match=rf"{name}: expected .*{told}"):
        load_run(folder)
    with pytest.raises(ResultsError):
        load_runs([tmp_path])


@pytest.mark.parametrize(("make", "told"), [(_fifo, "a FIFO"), (_device, "a device"), (_directory, "a folder")])
def test_launches_are_a_regular_file_too(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(tmp_path / LAUNCHES)
    with pytest.raises(ResultsError, match=told):
        finished_launches(tmp_path)


def test_a_line_without_end_is_refused(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    os.truncate(folder / SAMPLES, 2**30)
    with pytest.raises(ResultsError, match="line 221: expected at most 67108864 bytes a line"):
        load_run(folder)


@pytest.mark.parametrize("name", [MANIFEST, SAMPLES, TELEMETRY])
def test_nesting_without_end_is_no_crash(tmp_path: Path, name: str) -> None:
    folder = _written(tmp_path)
    deep = '{"schema":"enginecmp/1","scenario":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}\n"
    (folder / name).write_text(deep)
    if name == TELEMETRY:
        assert "1 line that are no readings" in load_run(folder).warnings[0]
        return
    with pytest.raises(ResultsError, match=r"recursion|not a sample"):
        load_run(folder)


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    folder = _written(tmp_path)
    (folder / SAMPLES).rename(tmp_path / "elsewhere")
    (folder / SAMPLES).symlink_to(tmp_path / "elsewhere")
    assert len(load_run(folder).columns) == 220
    assert read_manifest(folder).run_id == "sim-1"


@pytest.mark.parametrize(
    "limits", ["fast", 5, [1], {"ttft_seconds": "fast"}, {"ttft_seconds": -1}, {"ttft_seconds": True}, {"load": 1.0}]
)
def test_goodput_that_is_no_table_of_limits_is_refused_in_a_line(tmp_path: Path, limits: object) -> None:
    folder = _written(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["scenario"]["goodput"] = limits
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ResultsError, match=r"scenario\.goodput: expected metrics of requests with seconds above 0"):
        load_run(folder)


@pytest.mark.parametrize("claims", [5, "x", [1], [{"engine": 1}], {"engine": "a"}])
def test_claims_that_are_no_tables_are_refused_in_a_line(tmp_path: Path, claims: object) -> None:
    folder = _written(tmp_path)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["scenario"]["expect"] = claims
    (folder / MANIFEST).write_text(json.dumps(manifest))
    analysis = analyse(load_runs([folder]))
    with pytest.raises(ResultsError, match=r"scenario\.expect: expected tables"):
        decide_more(analysis, Options(), Questions())
