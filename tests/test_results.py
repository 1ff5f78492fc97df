from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from helpers import read_samples

from enginecmp.errors import ResultsError, UnreadableSample
from enginecmp.format.flags import Flag
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import SCHEMA, Cell, LaunchRecord, Manifest, RunModel, Sample
from enginecmp.results.writer import ResultsFolder, RunWriter, mark_torn, write_in_run


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "schema": SCHEMA,
        "run_id": "r1",
        "created_utc": "2026-01-02T03:04:05Z",
        "status": "running",
        "seed": 7,
        "scenario": {"name": "single"},
        "model": RunModel(name="m", sha256="0" * 64),
        "baseline": "a",
        "engines": [],
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def sample(launch: str = "b0-a", index: int = 0) -> Sample:
    return Sample(
        block=0,
        order=0,
        launch=launch,
        engine="a",
        cell=Cell(5, 3),
        index=index,
        phase="measure",
        intended_ns=10,
        start_ns=10,
        token_ns=[20, 30, 40],
        end_ns=41,
        prompt_tokens=5,
        output_tokens=3,
        status="ok",
    )


def test_a_sample_line_has_exactly_the_pinned_keys(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, manifest())
    writer.append(sample())
    writer.close()
    line = msgspec.json.decode((tmp_path / "samples.jsonl").read_bytes())
    assert line == {
        "block": 0,
        "order": 0,
        "launch": "b0-a",
        "engine": "a",
        "cell": {"prompt_tokens": 5, "output_tokens": 3, "concurrency": 1},
        "index": 0,
        "phase": "measure",
        "intended_ns": 10,
        "start_ns": 10,
        "token_ns": [20, 30, 40],
        "end_ns": 41,
        "prompt_tokens": 5,
        "output_tokens": 3,
        "status": "ok",
        "error": None,
        "flags": [],
        "metrics": {},
    }


def test_a_manifest_has_exactly_the_pinned_keys(tmp_path: Path) -> None:
    RunWriter(tmp_path, manifest()).close()
    content = msgspec.json.decode((tmp_path / "manifest.json").read_bytes())
    assert sorted(content) == sorted(
        [
            "schema",
            "run_id",
            "created_utc",
            "status",
            "seed",
            "scenario",
            "model",
            "baseline",
            "engines",
            "environment",
            "equivalence",
        ]
    )
    assert read_manifest(tmp_path) == manifest()


def test_every_line_is_on_disk_before_append_returns(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, manifest())
    for index in range(3):
        writer.append(sample(index=index))
        assert [found.index for found in read_samples(tmp_path)] == list(range(index + 1))
    writer.close()


def test_a_full_disk_keeps_whole_lines(tmp_path: Path) -> None:
    # A file size limit gives the same short write and error as a full disk.
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from enginecmp.errors import ResultsError\n"
        "from enginecmp.results.writer import RunWriter\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from test_results import manifest, sample\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = RunWriter(Path(sys.argv[1]), manifest())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    for index in range(100): writer.append(sample(index=index))\n"
        "except ResultsError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"results folder {tmp_path}: No space left on device\n"
    kept = read_samples(tmp_path)
    assert len(kept) >= 2
    assert (tmp_path / "samples.jsonl").read_bytes().endswith(b"\n")


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match="choose another with --out"):
        ResultsFolder(tmp_path / "file" / "results")


def test_a_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with ResultsFolder(tmp_path), pytest.raises(ResultsError, match=f"process {os.getpid()} is writing into it"):
        ResultsFolder(tmp_path)
    with ResultsFolder(tmp_path):
        pass  # free again


def test_replacing_a_file_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_in_run(path, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(ResultsError, match="File too large"):
            write_in_run(path, b"x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["manifest.json"]


def test_torn_launches_are_marked_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, manifest())
    writer.append(sample("b0-a"))
    writer.end_launch(LaunchRecord(launch="b0-a", block=0, engine="a", status="ok", seconds=1.0))
    writer.append(sample("b0-b", 0))
    writer.append(sample("b0-b", 1))
    writer.close()
    with open(tmp_path / "samples.jsonl", "ab") as file:
        file.write(b'{"block":0,"or')

    torn = mark_torn(tmp_path, [record.launch for record in finished_launches(tmp_path)])

    assert torn.launches == ["b0-b"]
    assert torn.samples == 2
    assert [found.flags for found in read_samples(tmp_path)] == [[], [Flag.TORN_LAUNCH], [Flag.TORN_LAUNCH]]
    assert mark_torn(tmp_path, ["b0-a"]).samples == 0, "marking twice changes nothing"


def test_a_bad_line_is_an_error_with_file_and_line(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, manifest())
    writer.append(sample())
    writer.close()
    with open(tmp_path / "samples.jsonl", "ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(ResultsError, match=r"samples\.jsonl:2:"):
        mark_torn(tmp_path, [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"schema": "enginecmp/2"}', "expected schema 'enginecmp/1', got 'enginecmp/2'"),
        ("[]", "expected a manifest with a schema"),
        ("{", "expected a manifest with a schema"),
        ('{"schema": "enginecmp/1"}', "missing required field"),
    ],
)
def test_a_manifest_that_is_not_one_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ResultsError, match=r"manifest\.json") as error:
        read_manifest(tmp_path)
    assert expected in str(error.value)


def test_a_folder_without_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="not a run's folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"metrics": {"weights_bytes": float("nan")}}, "expected a sample of format version 1"),
        ({"metrics": {"weights_bytes": float("inf")}}, "expected a sample of format version 1"),
        ({"start_ns": 1.5}, "expected a sample of format version 1"),
        ({"end_ns": 2**63}, "stamp: expected an int64"),
        ({"intended_ns": -(2**70)}, "intended_ns: expected an int64"),
        ({"output_tokens": -1}, "output_tokens: expected a count"),
        ({"token_ns": [30, 20]}, "stamps that run backwards"),
        ({"end_ns": 0}, "stamps that run backwards"),
        ({"token_ns": [20] * 4}, "expected at most output_tokens"),
    ],
)
def test_what_no_reader_takes_is_not_written(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    writer = RunWriter(tmp_path, manifest())
    writer.append(sample(index=0))
    with pytest.raises(UnreadableSample, match=what):
        writer.append(msgspec.structs.replace(sample(index=1), **changes))
    writer.append(sample(index=2))
    writer.close()
    assert [found.index for found in read_samples(tmp_path)] == [0, 2]
