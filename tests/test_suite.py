"""`cmp run --suite`: several runs, one report; resumable, and it says which part failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import SCENARIO

from enginecmp.cli.run import command
from enginecmp.cli.suite import resume_suite, start_suite
from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.readers import read_manifest
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.options import RunOptions
from enginecmp.run.suite import read_suite
from enginecmp.types import ModelInfo, Probe

SUITE = """
name = "night"
[defaults]
scenario = "mini.toml"
no_gate = true
no_sensors = true
engines = "a=fake,b=fake"
baseline = "a"
[[run]]
name = "plain"
[[run]]
name = "slow"
options = ["b.decode_us=3000"]
blocks = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mini.toml").write_text(SCENARIO)
    (tmp_path / "suite.toml").write_text(SUITE)
    return tmp_path


def suite_of(results: Path) -> Path:
    (found,) = results.glob("*/suite.json")
    return found.parent


def states(suite: Path) -> dict[str, str]:
    return {part["name"]: part["status"] for part in json.loads((suite / "suite.json").read_text())["parts"]}


def test_the_file_says_more_than_the_command_line_which_says_more_than_defaults(folder: Path) -> None:
    given = RunOptions(model="m.gguf", blocks=7, profile="quick", seed=3)
    name, parts = read_suite(folder / "suite.toml", given)
    assert name == "night"
    assert [part.name for part in parts] == ["plain", "slow"]
    plain, slow = (part.options for part in parts)
    assert (plain.blocks, slow.blocks) == (7, 1)
    assert (plain.model, plain.profile, plain.seed) == ("m.gguf", "quick", 3)
    assert plain.scenario == str(folder / "mini.toml")
    assert slow.options == ("b.decode_us=3000",)
    assert RunOptions.of(json.loads(json.dumps(slow.given()))) == slow


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "at least one"),
        ("[[runs]]", "did you mean 'run'"),
        ("[[run]]\nscenaro = 'single'", "did you mean 'scenario'"),
        ("[[run]]\nresume = 'x'", "unknown key 'resume'"),
        ("[[run]]\nblocks = 'ten'", "blocks"),
        ("[[run]]\nusual_profile = 'quick'", "unknown key 'usual_profile'"),
        ("[[run]]\nname = '../x'", "letters, digits"),
        ("name = 'a/b'\n[[run]]", "letters, digits"),
        ("[[run]]\n[[run]]", "two parts are called 'sustained'"),
        ("run = 3", "at least one"),
        ("= ", "not TOML"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_runs(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(UsageError, match=told):
        read_suite(tmp_path / "s.toml", RunOptions())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("blocks = 0", "--blocks.*, got '0'"),
        ("requests = 0", "--requests.*0 is not in the range"),
        ("precision = 2.0\nadaptive = true", "--precision.*expected a share"),
        ("precision = 0.5", "--precision: is what is aimed at by --adaptive, which is not given"),
        ("max_extra = -5.0", "--max-extra.*expected a share"),
        ("max_extra = inf", "--max-extra.*got 'inf'"),
        ("max_extra = nan", "--max-extra.*got 'nan'"),
        ("score_positions = 1", "--score-positions.*1 is not in the range"),
        ("max_kl = -1.0", "--max-kl"),
        ("max_nll_increase = nan", "nan"),
        ("find_max = 'rate'", "--find-max: is the largest load that keeps --slo, which is not given"),
        ("no_gate = true\nmax_kl = 0.1", "--no-gate: skips the gate"),
    ],
)
def test_a_part_takes_what_the_command_line_takes(line: str, told: str, tmp_path: Path, tiny: ModelInfo) -> None:
    file = tmp_path / "s.toml"
    file.write_text(f'[[run]]\nname = "p"\nmodel = {tiny.path!r}\nscenario = "single"\nengines = "no"\n{line}\n')
    with pytest.raises(UsageError, match=f"part p: .*{told}"):
        start_suite(RunOptions(out=tmp_path / "out", dry_run=True), file, command)


def test_a_suite_of_many_parts_asks_each_engine_once(
    folder: Path, tiny: ModelInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def probe(plugin: Plugin, *_: object) -> Probe:
        asked.append(plugin.name)
        return Probe(ok=True)

    monkeypatch.setenv("CMP_PLUGINS", FAKE_MODULE)
    monkeypatch.setattr("enginecmp.run.probe.probe", probe)
    (folder / "many.toml").write_text(SUITE + "".join(f'[[run]]\nname = "p{n}"\nseed = {n}\n' for n in range(20)))
    assert (
        start_suite(RunOptions(model=tiny.path, dry_run=True, out=folder / "out"), folder / "many.toml", command) == 0
    )
    assert asked == ["fake", "fake"]  # as it comes, and with the option of the second part


@pytest.mark.parametrize("key", ["scenario", "model", "reference"])
def test_nul_in_a_suite_is_refused_by_name(key: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(f'[[run]]\n{key} = "a\\u0000b.toml"\n')
    with pytest.raises(UsageError, match=f"run 1: expected text without the character NUL in {key}"):
        read_suite(tmp_path / "s.toml", RunOptions())


@pytest.mark.parametrize("outside", ["..", "../x", "/tmp", ".", "a\0b"])
def test_a_part_of_a_foreign_suite_lies_inside_its_folder(outside: str, tmp_path: Path) -> None:
    part = {"name": "p", "options": {}, "status": "complete", "folder": outside}
    (tmp_path / "suite.json").write_text(json.dumps({"name": "s", "parts": [part]}))
    with pytest.raises(ResultsError, match="expected the name of a run beside it"):
        resume_suite(RunOptions(), tmp_path, command)


def test_parts_run_one_after_the_other_and_end_in_one_report(cmp: CommandLine, folder: Path, tiny: ModelInfo) -> None:
    done = cmp("run", "--suite", "suite.toml", "--model", tiny.path, "--seed", "4")
    assert done.returncode == 0, done.stderr
    suite = suite_of(folder / "results")
    assert states(suite) == {"plain": "complete", "slow": "complete"}
    assert (suite / "report.html").stat().st_size > 10_000
    runs = {read_manifest(path.parent).scenario["blocks"]: path.parent for path in suite.glob("*/manifest.json")}
    assert sorted(runs) == [1, 2]
    assert {read_manifest(run).seed for run in runs.values()} == {4}
    assert "plain: complete" in done.stdout
    assert f"report of all parts: results/{suite.name}/report.html" in done.stdout
    # Each run can be repeated by itself.
    assert "--suite" not in json.loads((runs[1] / "resume.json").read_text())["command"]
    assert cmp("stats", suite, "--json").returncode == 0
    again = cmp("run", "--resume", suite)
    assert again.returncode == 0, again.stderr
    assert "nothing to resume" in again.stderr


def test_a_part_that_fails_is_named_and_runs_again_alone(cmp: CommandLine, folder: Path, tiny: ModelInfo) -> None:
    broken = SUITE.replace(
        'options = ["b.decode_us=3000"]', 'options = ["a.fault=crash@prefill", "b.fault=crash@prefill"]'
    )
    (folder / "suite.toml").write_text(broken)
    done = cmp("run", "--suite", "suite.toml", "--model", tiny.path, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [part["status"] for part in found["suite"]["parts"]] == ["complete", "failed"]
    assert "part slow failed: nothing was measured" in done.stderr
    suite = suite_of(folder / "results")
    state = json.loads((suite / "suite.json").read_text())
    state["parts"][1]["options"]["options"] = []
    (suite / "suite.json").write_text(json.dumps(state))
    again = cmp("run", "--resume", suite)
    assert again.returncode == 0, again.stderr
    assert "resuming: slow" in again.stderr
    assert states(suite) == {"plain": "complete", "slow": "complete"}


def test_a_wrong_name_in_a_later_part_costs_no_measurement(cmp: CommandLine, folder: Path, tiny: ModelInfo) -> None:
    (folder / "suite.toml").write_text(SUITE + 'profile = "ful"\n')
    done = cmp("run", "--suite", "suite.toml", "--model", tiny.path)
    assert done.returncode == 2
    assert "part slow" in done.stderr or "profile" in done.stderr
    assert not (folder / "results").exists()


def test_a_suite_that_was_cut_off_goes_on_in_the_part_under_way(
    folder: Path, tiny: ModelInfo, cmp: CommandLine
) -> None:
    (folder / "suite.toml").write_text(
        SUITE.replace('name = "plain"', 'name = "plain"\noptions = ["a.clock=real", "a.decode_us=60000"]\nblocks = 3')
    )
    environment = {**os.environ, "CMP_PLUGINS": FAKE_MODULE}
    line = [os.path.join(os.path.dirname(sys.executable), "cmp"), "run", "--suite", "suite.toml", "--model", tiny.path]
    with subprocess.Popen(
        line,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        end = time.monotonic() + 60
        while not list((folder / "results").glob("suite-*/*/launches.jsonl")) and not list(
            (folder / "results").glob("*/*/launches.jsonl")
        ):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    suite = suite_of(folder / "results")
    assert process.returncode == 130, said
    assert f"interrupted in part plain; to go on: cmp run --resume results/{suite.name}" in said
    assert states(suite) == {"plain": "running", "slow": "waiting"}
    (begun,) = suite.glob("*/manifest.json")
    again = cmp("run", "--resume", suite)
    assert again.returncode == 0, again.stderr
    assert states(suite) == {"plain": "complete", "slow": "complete"}
    assert read_manifest(begun.parent).status == "complete"
    assert len(list(suite.glob("*/manifest.json"))) == 2


def test_a_suite_goes_on_from_inside_its_folder(folder: Path, tiny: ModelInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = folder / "results" / "suite"
    suite.mkdir(parents=True)
    scenario = str(folder / "mini.toml")
    asked = RunOptions(scenario=scenario, model=tiny.path, engines="fake", no_gate=True, no_sensors=True, blocks=1)
    state = {"name": "night", "parts": [{"name": "plain", "options": asked.given()}]}
    (suite / "suite.json").write_text(json.dumps(state))
    monkeypatch.setenv("CMP_PLUGINS", FAKE_MODULE)
    monkeypatch.chdir(suite)
    assert resume_suite(RunOptions(), Path(), command) == 0
    assert states(suite) == {"plain": "complete"}
    assert (folder / "results" / ".lock").exists()
