from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine
from helpers import only_run

from enginecmp.machine.noise import NoiseFloor, floors_for, known_floors, publish
from enginecmp.types import ModelInfo

SCENARIO = """
name = "mini"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 4
output_tokens = 2
[profile.quick]
blocks = 10
requests = 10
[validity]
floor_seconds = 1000
"""


def floor(**changes: object) -> NoiseFloor:
    fields: dict[str, object] = {
        "machine": {"cpu": "x", "cores": 2, "memory_bytes": 1, "os": "o", "kernel": "k"},
        "engine": "e",
        "version": "1",
        "scenario": "s/quick",
        "metric": "ttft_seconds",
        "ratio": 1.004,
        "ci_low": 0.99,
        "ci_high": 1.02,
        "cv_launches": 0.01,
        "n_launches": 10,
        "runs": 1,
        "false_alarms": 0,
        "measured_utc": "2026-01-02T03:04:05Z",
    }
    return NoiseFloor(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


def test_a_new_floor_replaces_the_old_one_of_the_same_machine_and_engine() -> None:
    publish(floor())
    publish(floor(engine="f"))
    publish(floor(ratio=1.001))
    assert [(found.engine, found.ratio) for found in known_floors()] == [("f", 1.004), ("e", 1.001)]


def test_a_floor_belongs_to_its_machine() -> None:
    publish(floor())
    machine = {"cpu": "x", "cores": 2, "memory_bytes": 1, "os": "o", "kernel": "k", "python": "any"}
    assert [found.engine for found in floors_for(machine)] == ["e"]
    assert floors_for({**machine, "cores": 4}) == []


def test_a_file_that_is_not_ours_is_no_floor(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "noise.json").write_text("{")
    assert known_floors() == []


def test_a_floor_in_words() -> None:
    assert floor().describe() == (
        "noise floor of this machine: e against itself in s/quick: +0.4% [-1.0%, +2.0%] in ttft_seconds, launches "
        "spread by 1.0% (n=10+10, 2026-01-02)"
    )


def test_an_aa_run_publishes_a_floor_that_later_verdicts_quote(
    cmp: CommandLine, tiny: ModelInfo, tmp_path: Path
) -> None:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    arguments = ["--aa", "fake", "--scenario", "./mini.toml", "--model", tiny.path, "-o", "launch_sd=0.02"]
    done = cmp("selftest", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=NoiseFloor)
    assert found.engine == "fake"
    assert found.n_launches == 10
    assert found.ci_low < found.ratio < found.ci_high
    # Throughput of launches whose speed has a lognormal factor of 2 %: 2 % spread, within chi-square limits of n=10.
    assert 0.008 < found.cv_launches < 0.04
    table = cmp("stats", only_run(tmp_path / "results-aa"))
    assert "noise floor of this machine: fake against itself" in " ".join(table.stdout.split())
