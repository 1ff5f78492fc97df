"""`cmp tune` end to end on the fake engine: what is tried, who is dropped, what is stored, what is not."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import unchanged
from conftest import FAKE_MODULE, CommandLine
from helpers import ONE_CELL

from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.plugins.discovery import discover
from enginecmp.run.options import RunOptions
from enginecmp.run.prepare import make_request, make_scenario
from enginecmp.tune.candidates import candidate
from enginecmp.tune.race import Judge, Rules, race
from enginecmp.types import ModelInfo
from enginecmp_analysis.judge.race import Race

pytestmark = unchanged.left_out_with()

SCENARIO = f"""{ONE_CELL}[profile.quick]
blocks = 3
requests = 4
[validity]
# The fake clock stands still while the machine works, so shares of its windows mean nothing.
floor_seconds = 1000
"""

# An engine with other things to tune, under a name of its own; it keeps the fake engine's hooks.
TOY = """
import msgspec
from enginecmp import hookimpl
from enginecmp.testing import fake_engine as fake
from enginecmp.testing.fake_engine import *
@hookimpl
def cmp_engine():
    return msgspec.structs.replace(fake.cmp_engine(), name="toy", tunables={tunables})
"""


@pytest.fixture(autouse=True)
def _own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINECMP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    """`cmp tune` with a small scenario on the tiny model; the engine's name is still to come."""
    (tmp_path / "mini.toml").write_text(SCENARIO)
    return ["tune", "--scenario", "./mini.toml", "--model", tiny.path, "--reference", "fake", "--seed", "4"]


def toy(tmp_path: Path, **tunables: tuple[str, ...]) -> dict[str, str]:
    """Return the environment in which there is an engine "toy" with these tunables."""
    (tmp_path / "cmp_test_toy.py").write_text(TOY.format(tunables=tunables))
    return {"CMP_PLUGINS": f"{FAKE_MODULE},cmp_test_toy", "PYTHONPATH": str(tmp_path)}


def stored(tmp_path: Path) -> list[dict[str, Any]]:
    path = tmp_path / "cache" / "tuned.json"
    return msgspec.json.decode(path.read_bytes()) if path.exists() else []


def launches(tmp_path: Path) -> list[Counter[str]]:
    """Return how often each setting was launched, race by race."""
    runs = sorted((tmp_path / "results").glob("tune-*/*/manifest.json"), key=os.path.getmtime)
    return [Counter(record.engine for record in finished_launches(path.parent)) for path in runs]


def test_the_planted_best_setting_is_found_stored_and_used(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "fake", "--json")
    assert done.returncode == 0, done.stderr
    (winner,) = stored(tmp_path)
    assert winner["changes"] == {"gear": "2"}
    # Everything takes a fifth less time in gear 2.
    assert winner["ci_low"] < 1.25 < winner["ci_high"]
    told = msgspec.json.decode(done.stdout)
    assert (told["stored"], told["winner"]["changes"]) == (True, {"gear": "2"})
    (race,) = told["races"]
    assert race["outcomes"]["gear=2"] == "best"
    # What computes something else is never launched; losers stop as soon as three blocks show it.
    (counts,) = launches(tmp_path)
    assert not any("lossy" in label for label in counts)
    assert all(race["outcomes"][label].startswith("not comparable") for label in race["outcomes"] if "lossy" in label)
    assert counts["gear=3"] < 10
    (folder,) = (tmp_path / "results").glob("tune-fake-*")
    assert "gear=2" in cmp("stats", folder).stdout

    both = cmp("run", *line[1:], "--engines", "fake", "--tuned", "both", "--profile", "quick", "--no-gate")
    assert both.returncode == 0, both.stderr
    (run,) = (path.parent for path in (tmp_path / "results").glob("*/manifest.json"))
    engines = {engine.name: engine.options for engine in read_manifest(run).engines}
    assert {name: options["tuned"] for name, options in engines.items()} == {"fake": "default", "fake+tuned": "tuned"}
    assert engines["fake"]["extra"] == {}
    assert engines["fake+tuned"]["extra"] == {"gear": "2"}

    assert "gear=2" in cmp("tune", "fake", "--forget").stdout
    assert stored(tmp_path) == []
    without = cmp("run", *line[1:], "--engines", "fake", "--tuned", "tuned", "--profile", "quick")
    assert without.returncode == 1
    assert "cmp tune fake" in without.stderr


def test_settings_that_tie_leave_the_default(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    steady = ["-o", "launch_sd=0.001", "-o", "request_sd=0"]
    done = cmp(*line, "toy", "--no-gate", *steady, env=toy(tmp_path, gear=("1", "4")))
    assert done.returncode == 0, done.stderr
    assert "those left differ by less than 3%" in done.stdout
    assert stored(tmp_path)[0]["changes"] == {}
    assert "stored for toy" in done.stderr
    assert "its default" in done.stderr


def test_single_changes_are_joined_where_combinations_are_many(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    environment = toy(
        tmp_path, decode_us=("1000", "700", "1300"), prefill_us=("100", "20", "300"), load_ms=("100", "90")
    )
    done = cmp(*line, "toy", "--no-gate", "--blocks", "8", env=environment)
    assert done.returncode == 0, done.stderr
    assert "5 single changes of 18 combinations" in done.stderr
    assert stored(tmp_path)[0]["changes"] == {"decode_us": "700", "prefill_us": "20"}
    first, second = launches(tmp_path)
    assert set(first) == {"default", "decode_us=700", "decode_us=1300", "prefill_us=20", "prefill_us=300", "load_ms=90"}
    assert set(second) == {"decode_us=700", "default", "decode_us=700,prefill_us=20"}


def test_a_setting_that_fails_is_dropped_and_told(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "toy", "--no-gate", env=toy(tmp_path, fault=("", "error@load")))
    assert done.returncode == 0, done.stderr
    (counts,) = launches(tmp_path)
    assert counts["fault=error_load"] == 1
    assert "fails: " in done.stdout
    assert stored(tmp_path)[0]["changes"] == {}


def test_a_default_that_fails_is_an_error(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "toy", "--no-gate", "-o", "fault=error@load", env=toy(tmp_path, gear=("1", "2")))
    assert done.returncode == 1
    assert "nothing to tune against" in done.stderr
    assert stored(tmp_path) == []


class _Standing(NamedTuple):
    """A candidate that looks like the default."""

    label: str
    n: int = 0
    ratio: float = 1.0
    ci_low: float = 1.0
    ci_high: float = 1.0
    better_p: float = 0.5


def test_no_block_is_begun_when_the_time_is_over(
    tmp_path: Path, tiny: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 300 s of a clock of its own pass between two looks; blocks that take 0.2 s or 90 s give the same count.
    (tmp_path / "mini.toml").write_text(SCENARIO)
    monkeypatch.setenv("CMP_PLUGINS", FAKE_MODULE)
    plugins = discover()
    asked = RunOptions(
        engines="fake", scenario=str(tmp_path / "mini.toml"), profile="quick", blocks=30, no_gate=True, no_sensors=True
    )
    request = make_request(asked, make_scenario(asked), tiny, 4, plugins, print)
    clock = itertools.count(0, 300)
    judge = Judge(
        state=Race(["default", "gear=4"], alpha=0.0),
        scores=lambda _: {},
        beside=lambda labels, _: [_Standing(label) for label in labels],
        min_blocks=3,
    )
    limits = {"seconds": 1000.0, "most_seconds": 1000.0}
    rules = Rules(metric="throughput_tokens_per_second", higher_is_better=True, alpha=0.05, margin=0.03, **limits)
    found = race(
        request,
        [candidate({}), candidate({"gear": "4"})],
        tmp_path / "out",
        rules,
        judge,
        print,
        lambda: float(next(clock)),
    )
    # The race begins at 300 s; after blocks 1, 2 and 3 it is 600, 900 and 1200 s; 1500 s is more than 1000 s later.
    assert (found.blocks, found.ended) == (4, "its time of 16 min 40 s is over")
    assert found.launches == {"default": 4, "gear=4": 4}
    assert read_manifest(found.folder).status == "complete"


def test_too_little_time_to_tell_anything_stores_nothing(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "fake", "--no-gate", "--budget", "0.1s")
    assert done.returncode == 1
    assert "that may be too little" in done.stderr
    assert "nothing is stored: 1 blocks tell nothing" in done.stderr
    assert "best" not in done.stdout
    assert stored(tmp_path) == []


def test_an_interruption_stores_nothing_and_keeps_the_runs(line: list[str], tmp_path: Path) -> None:
    slow = ["fake", "--no-gate", "-o", "clock=real", "-o", "decode_us=30000", "-o", "gear=1", "--debug"]
    command = [os.path.join(os.path.dirname(sys.executable), "cmp"), *line, *slow]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "CMP_PLUGINS": FAKE_MODULE},
        stderr=subprocess.PIPE,
        text=True,
        # A test runner in the background ignores SIGINT, and a child inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if any(b"measure" in path.read_bytes() for path in tmp_path.glob("results/tune-*/*/samples.jsonl")):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted: nothing is stored" in said
    assert stored(tmp_path) == []
    (manifest,) = tmp_path.glob("results/tune-*/*/manifest.json")
    assert read_manifest(manifest.parent).status == "interrupted"


def test_a_dry_run_prints_the_settings_and_starts_nothing(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "fake", "--dry-run", "-o", "lossy=0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["default", "gear=2", "gear=3", "gear=4"]
    assert not (tmp_path / "results").exists()


def test_an_engine_with_nothing_to_tune_says_so(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "fake", "-o", "gear=1", "-o", "lossy=0")
    assert done.returncode == 1
    assert "has nothing to tune here" in done.stderr
