"""An engine on a device whose speed says nothing takes part in the gate, and is never timed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CommandLine
from helpers import ONE_CELL, only_run, read_samples

from enginecmp.format.readers import read_manifest
from enginecmp.types import ModelInfo

SCENARIO = f"""{ONE_CELL}[profile.full]
blocks = 2
requests = 2
warmup_requests = 1
[validity]
floor_seconds = 1000
"""


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    path = tmp_path / "mini.toml"
    path.write_text(SCENARIO)
    return ["run", "--scenario", str(path), "--model", tiny.path, "--reference", "fake", "--engines", "a=fake,b=fake"]


def test_one_of_two_is_proven_and_not_timed(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--device", "b=emulated")
    assert done.returncode == 0, done.stderr
    assert "b: not timed" in done.stderr
    run = only_run(tmp_path / "results")
    assert {sample.engine for sample in read_samples(run)} == {"a"}
    manifest = read_manifest(run)
    assert {entry.engine for entry in manifest.equivalence} >= {"a", "b"}
    assert {e.name: e.options.get("timed", True) for e in manifest.engines} == {"a": True, "b": False}
    told = cmp("stats", "--all", str(run))
    assert told.returncode == 0, told.stderr
    assert "emulated, default, not timed" in told.stdout


def test_an_untimed_engine_that_computes_something_else_is_found(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    done = cmp(*line, "--device", "b=emulated", "-o", "b.error=3")
    assert done.returncode == 0, done.stderr
    found = {entry.engine: entry.verdict for entry in read_manifest(only_run(tmp_path / "results")).equivalence}
    assert found["b"] == "not comparable"


def test_without_anybody_to_time_the_gate_is_all(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--device", "emulated")
    assert done.returncode == 0, done.stderr
    assert "quality only" in done.stderr
    assert "mean KL" in done.stdout
    assert read_samples(only_run(tmp_path / "results")) == []


def test_without_anybody_to_time_and_without_the_gate_nothing_is_left(cmp: CommandLine, line: list[str]) -> None:
    done = cmp(*line, "--device", "emulated", "--no-gate")
    assert done.returncode == 2
    assert "nothing to do" in done.stderr


def test_an_untimed_engine_cannot_be_the_baseline(cmp: CommandLine, line: list[str]) -> None:
    done = cmp(*line, "--device", "b=emulated", "--baseline", "b")
    assert done.returncode == 2
    assert "--baseline b: not in this run, which has a" in done.stderr


def test_tuning_for_a_speed_that_says_nothing_is_refused(cmp: CommandLine, tiny: ModelInfo) -> None:
    done = cmp("tune", "fake", "--model", tiny.path, "--reference", "fake", "--device", "emulated")
    assert done.returncode == 2
    assert "a device whose speed means something" in done.stderr
