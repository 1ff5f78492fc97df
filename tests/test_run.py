"""Whole runs of the fake engine through the command line: what is on disk, and what survives."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import FAKE_MODULE, CommandLine, command_line
from helpers import ONE_CELL, only_run, read_samples

from enginecmp.format.files import LAUNCHES, SAMPLES
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import Cell, LaunchRecord, Sample
from enginecmp.run.outcome import without_result
from enginecmp.types import ModelInfo

SCENARIO = f"""{ONE_CELL}[profile.full]
blocks = 3
requests = 4
warmup_requests = 1
[validity]
# The fake clock stands still while the machine works, so shares of its windows mean nothing.
floor_seconds = 1000
"""


def small_run(folder: Path, model: ModelInfo) -> list[str]:
    path = folder / "mini.toml"
    path.write_text(SCENARIO)
    return ["run", "--scenario", str(path), "--model", model.path, "--reference", "fake", "--seed", "5"]


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    """`cmp run` with a small scenario on the tiny model."""
    return small_run(tmp_path, tiny)


def test_a_run_writes_every_request_of_every_launch(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "a=fake,b=fake")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    samples = read_samples(run)
    assert Counter((s.engine, s.phase) for s in samples) == {
        ("a", "load"): 3,
        ("b", "load"): 3,
        # One a launch before the cell, and a prompt sent twice after it.
        ("a", "warmup"): 9,
        ("b", "warmup"): 9,
        ("a", "measure"): 12,
        ("b", "measure"): 12,
    }
    assert {s.status for s in samples} == {"ok"}
    assert all(len(s.token_ns) == s.output_tokens == 6 for s in samples if s.phase == "measure")
    manifest = read_manifest(run)
    assert manifest.status == "complete"
    assert manifest.seed == 5
    assert manifest.baseline == "a"
    assert [e.name for e in manifest.engines] == ["a", "b"]
    assert manifest.scenario["blocks"] == 3
    assert len(manifest.scenario["prompts_sha256"]) == 64
    assert {record.status for record in finished_launches(run)} == {"ok"}


def test_a_run_ends_with_what_stats_says_first(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "a=fake,b=fake", "--blocks", "2", "--no-gate")
    assert done.returncode == 0, done.stderr
    told = cmp("stats", Path("results") / only_run(tmp_path / "results").name)
    assert told.stdout.startswith("No verdict yet on ")
    assert told.stdout in done.stderr
    assert "1 of 1 comparisons withheld for lack of requests; start a new run: cmp run --engines" in done.stderr
    assert done.stderr.endswith("--blocks 10 --requests 10\n")
    # The prompt sent twice in warm-up asks for one token: nothing to warn about.
    assert "output length" not in told.stdout


def test_the_gate_runs_first_and_its_numbers_are_recorded(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "good=fake,bad=fake", "-o", "bad.error=3", "--blocks", "1")
    assert done.returncode == 0, done.stderr
    found = {(e.engine, e.verdict) for e in read_manifest(only_run(tmp_path / "results")).equivalence}
    assert ("good", "reference") in found
    assert ("good", "equivalent") in found
    assert ("bad", "not comparable") in found
    bad = [e for e in read_manifest(only_run(tmp_path / "results")).equivalence if e.engine == "bad"]
    assert all(e.mean_kl is not None and e.mean_kl > 0.02 and e.positions >= 64 for e in bad)
    assert "bad" in done.stderr
    assert "not comparable" in done.stderr


def test_nan_logits_are_not_comparable(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "good=fake,bad=fake", "-o", "bad.nan=3", "--blocks", "1")
    assert done.returncode == 0, done.stderr
    bad = [e for e in read_manifest(only_run(tmp_path / "results")).equivalence if e.engine == "bad"]
    assert {e.verdict for e in bad} == {"not comparable"}
    assert all("position 3" in e.note for e in bad)


def test_no_gate_marks_the_run(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "fake", "--no-gate", "--blocks", "1")
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(only_run(tmp_path / "results"))
    assert [e.verdict for e in manifest.equivalence] == ["not checked"]
    assert manifest.scenario["gate"] is False


@pytest.mark.parametrize(
    ("fault", "phase", "status"),
    [
        ("crash@load", "load", "crash"),
        ("crash@prefill", "warmup", "crash"),
        ("crash@decode:2", "warmup", "crash"),
        ("garbage@decode:2", "warmup", "crash"),
        ("oom@load", "load", "error"),
        ("error@prefill", "warmup", "error"),
    ],
)
def test_one_engine_fails_and_the_others_go_on(
    cmp: CommandLine, line: list[str], tmp_path: Path, fault: str, phase: str, status: str
) -> None:
    done = cmp(*line, "--no-gate", "--engines", "good=fake,bad=fake", "-o", f"bad.fault={fault}")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    samples = read_samples(run)
    assert sum(s.engine == "good" and s.phase == "measure" for s in samples) == 12
    bad = [s for s in samples if s.engine == "bad" and s.status != "ok"]
    assert {(s.phase, s.status) for s in bad} >= {(phase, status)}
    assert all(s.error and "bad: " in s.error for s in bad)
    assert "bad: given up after 3 failed launches in a row" in done.stderr
    assert read_manifest(run).status == "complete"


def test_a_hanging_engine_is_killed_at_its_deadline(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(
        *line, "--no-gate", "--engines", "good=fake,bad=fake", "--blocks", "1",
        "-o", "bad.fault=hang@decode:1", "--deadline", "prefill=4", "--deadline", "decode=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    bad = [s for s in read_samples(only_run(tmp_path / "results")) if s.engine == "bad" and s.status != "ok"]
    assert [s.status for s in bad] == ["timeout"]
    assert "hung in decode after 2 tokens" in (bad[0].error or "")


@pytest.mark.parametrize(("option", "flag", "tokens"), [("short=2", "short_output", 4), ("long=3", "long_output", 7)])
def test_a_wrong_token_count_is_flagged(
    cmp: CommandLine, line: list[str], tmp_path: Path, option: str, flag: str, tokens: int
) -> None:
    done = cmp(*line, "--no-gate", "--engines", "fake", "--blocks", "1", "-o", f"fake.{option}")
    assert done.returncode == 1
    assert f"cmp: nothing was measured: all 4 requests flagged {flag}; see the engine's log" in done.stderr
    measured = [s for s in read_samples(only_run(tmp_path / "results")) if s.phase == "measure"]
    assert {tuple(s.flags) for s in measured} == {(flag,)}
    assert {s.output_tokens for s in measured} == {tokens}
    assert f"4 measured requests are flagged {flag}" in done.stderr


def test_an_engine_that_fails_alone_makes_the_run_fail(cmp: CommandLine, line: list[str]) -> None:
    done = cmp(*line, "--no-gate", "--engines", "fake", "-o", "fake.fault=crash@load")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cmp: nothing was measured: all 3 launches failed: fake: was killed by SIGSEGV in load;")
    assert "done: " not in done.stderr


def start(line: list[str], folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [os.path.join(os.path.dirname(sys.executable), "cmp"), *line, *arguments]
    environment = {**os.environ, "CMP_PLUGINS": FAKE_MODULE}
    # A test runner in the background ignores SIGINT, and a child inherits that.
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_samples(folder: Path, number: int, out: str = "results") -> Path:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for path in folder.glob(f"{out}/*/samples.jsonl"):
            if path.read_bytes().count(b"\n") >= number:
                return path.parent
        time.sleep(0.02)
    pytest.fail("the run wrote nothing")


@pytest.fixture(scope="module")
def order(tiny: ModelInfo, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The launches of the small run of two engines that nobody stops."""
    folder = tmp_path_factory.mktemp("whole")
    done = command_line(folder)(*small_run(folder, tiny), "--no-gate", "--engines", "a=fake,b=fake")
    assert done.returncode == 0, done.stderr
    return [record.launch for record in finished_launches(only_run(folder / "results"))]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_keeps_what_was_finished_and_resumes(
    cmp: CommandLine, line: list[str], order: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    # A real clock makes requests long enough to be cut in the middle: 30 ms a token.
    slow = ["--no-gate", "--engines", "a=fake,b=fake", "-o", "a.clock=real", "-o", "a.decode_us=30000"]
    with start(line, tmp_path, *slow, "-o", "b.clock=real") as process:
        run = wait_for_samples(tmp_path, 9)
        process.send_signal(stop)
        _, said = process.communicate(timeout=30)
    before = read_samples(run)
    finished = finished_launches(run)
    status = read_manifest(run).status
    if stop == signal.SIGKILL:
        assert status == "running"
    else:
        assert process.returncode == 130
        assert status == "interrupted"
        assert f"cmp run --resume {run.relative_to(tmp_path)}" in said

    # The run's folder knows its file: the printed command needs no more than that.
    resumed = cmp("run", "--resume", run)
    assert resumed.returncode == 0, resumed.stderr
    samples = read_samples(run)
    assert read_manifest(run).status == "complete"
    # Nothing that was written is lost or changed, but for the mark on the launch that was cut off.
    kept = {record.launch for record in finished}
    for old, new in zip(before, samples, strict=False):
        assert msgspec.structs.replace(new, flags=old.flags) == old
        assert ("torn_launch" in new.flags) == (old.launch not in kept)
    valid = [s for s in samples if s.phase == "measure" and not s.flags]
    assert Counter(s.engine for s in valid) == {"a": 12, "b": 12}, resumed.stderr
    assert len({(s.block, s.engine, s.index) for s in valid}) == 24
    # The same order as one uninterrupted run of the same seed.
    assert [r.launch.partition(".")[0] for r in finished_launches(run)] == order


def test_resuming_a_complete_run_changes_nothing(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    cmp(*line, "--no-gate", "--engines", "fake", "--blocks", "1")
    run = only_run(tmp_path / "results")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    done = cmp("run", "--resume", run)
    assert done.returncode == 0
    assert "nothing to resume" in done.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_resuming_with_another_model_file_is_refused(
    cmp: CommandLine, line: list[str], tmp_path: Path, tiny: ModelInfo
) -> None:
    from enginecmp.models.synth import write_synth

    cmp(*line, "--no-gate", "--engines", "fake", "--blocks", "1")
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    manifest.status = "interrupted"
    (run / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    other = write_synth(tmp_path / "other.gguf", like="tiny-llama", quantization="F32", seed=1)
    done = cmp("run", "--resume", run, "--model", other.path)
    assert done.returncode == 1
    assert "SHA-256" in done.stderr


def test_two_runs_cannot_write_into_one_folder(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    slow = ["--no-gate", "--engines", "fake", "-o", "fake.clock=real", "-o", "fake.decode_us=30000"]
    with start(line, tmp_path, *slow) as process:
        wait_for_samples(tmp_path, 1)
        second = cmp(*line, *slow)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert second.returncode == 1
    assert f"the run of process {process.pid} is writing into it" in second.stderr
    assert len(list((tmp_path / "results").glob("*/manifest.json"))) == 1


def test_engines_get_the_same_prompts_in_a_block_and_others_in_the_next(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    # The fake clock makes a request's time a function of its prompt, the launch's name aside.
    exact = ["-o", "a.launch_sd=0", "-o", "b.launch_sd=0", "-o", "a.request_sd=0", "-o", "b.request_sd=0"]
    done = cmp(*line, "--no-gate", "--engines", "a=fake,b=fake", *exact)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    from enginecmp.models.store import resolve
    from enginecmp.prompts import PromptSet
    from enginecmp.scenarios.plan import prompt_key

    prompts = PromptSet(resolve(line[line.index("--model") + 1], fetch=False))
    taken = [
        prompts.take(8, key=prompt_key(block, 0, "measure", index, 5), seed=5)
        for block in range(3)
        for index in range(4)
    ]
    assert len(set(taken)) == 12
    assert {s.prompt_tokens for s in read_samples(run) if s.phase != "load"} == {8}


def test_a_dry_run_prints_the_plan_and_writes_nothing(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--engines", "a=fake,b=fake", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "3 blocks × 4 requests" in done.stdout
    assert "block   1:" in done.stdout
    assert "about" in done.stdout
    assert not (tmp_path / "results").exists()


def test_the_time_of_a_run_is_told_from_earlier_runs(cmp: CommandLine, line: list[str]) -> None:
    cmp(*line, "--no-gate", "--engines", "fake")
    done = cmp(*line, "--engines", "fake", "--dry-run")
    assert "from earlier runs here" in done.stdout


def test_a_dry_run_of_going_on_prints_the_launches_that_are_left(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    cmp(*line, "--no-gate", "--engines", "a=fake,b=fake")
    run = only_run(tmp_path / "results")
    whole = cmp("run", "--resume", run, "--dry-run")
    assert (whole.returncode, whole.stdout) == (0, "")
    assert "is complete, nothing to resume" in whole.stderr
    records = (run / "launches.jsonl").read_text().splitlines(keepends=True)
    (run / "launches.jsonl").write_text("".join(records[:3]))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    told = cmp("run", "--resume", run, "--dry-run")
    assert told.returncode == 0, told.stderr
    blocks = [words.split() for words in told.stdout.splitlines() if words.startswith("block")]
    assert [(number, len(launches)) for _, number, *launches in blocks] == [("2:", 1), ("3:", 2)]
    assert len((run / "launches.jsonl").read_text().splitlines()) == 3


def test_the_outcome_can_be_had_as_json(cmp: CommandLine, line: list[str]) -> None:
    done = cmp(*line, "--no-gate", "--engines", "fake", "--blocks", "1", "--json")
    outcome = msgspec.json.decode(done.stdout)
    assert outcome["status"] == "complete"
    assert outcome["launches"] == 1


def test_disturbed_requests_are_followed_by_spare_ones(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    # With a share and a floor of nothing every request counts as disturbed by some of the machine's work.
    scenario = Path(line[line.index("--scenario") + 1])
    scenario.write_text(SCENARIO.replace("floor_seconds = 1000", "floor_seconds = 0\nforeign_cpu_share = 0"))
    done = cmp(*line, "--no-gate", "--engines", "fake", "--blocks", "1", "-o", "fake.clock=real")
    measured = [s for s in read_samples(only_run(tmp_path / "results")) if s.phase == "measure"]
    assert done.returncode == all(s.flags for s in measured), done.stderr
    flagged = sum("foreign_cpu" in s.flags for s in measured)
    assert len(measured) == 4 + min(flagged, 2), "4 requests and at most 2 spare ones"
    assert [s.index for s in measured] == list(range(len(measured)))


ADAPTIVE = SCENARIO.replace("blocks = 3", "blocks = 10").replace("requests = 4", "requests = 10")


def test_an_adaptive_run_stops_when_it_is_precise_enough(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    Path(line[line.index("--scenario") + 1]).write_text(ADAPTIVE)
    steady = ["-o", "a.launch_sd=0.001", "-o", "b.launch_sd=0.001"]
    done = cmp(
        *line, "--no-gate", "--engines", "a=fake,b=fake", *steady, "--adaptive", "--precision", "2%", "--blocks", "14"
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    assert read_manifest(run).status == "complete"
    assert read_manifest(run).scenario["blocks"] == 10, "ten blocks are the least, and enough here"
    assert len(finished_launches(run)) == 20
    assert "wanted ±2.0%" in done.stderr
    assert "stopped after 10 blocks: precise enough" in done.stderr


def test_an_adaptive_run_goes_on_to_its_limit_when_it_is_not(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    Path(line[line.index("--scenario") + 1]).write_text(ADAPTIVE)
    noisy = ["-o", "a.launch_sd=0.1", "-o", "b.launch_sd=0.1"]
    done = cmp(
        *line, "--no-gate", "--engines", "a=fake,b=fake", *noisy, "--adaptive", "--precision", "1%", "--blocks", "12"
    )
    assert done.returncode == 0, done.stderr
    assert len(finished_launches(only_run(tmp_path / "results"))) == 24
    assert "stopped after 12 blocks: the most that were allowed, and not precise enough" in done.stderr


def test_a_run_that_measures_nothing_says_so_after_one_block_and_is_no_baseline(
    cmp: CommandLine, line: list[str], tmp_path: Path
) -> None:
    asked = [*line, "--no-gate", "--engines", "a=fake,b=fake", "-o", "a.short=2", "--save-baseline", "base"]
    one = cmp(*asked)
    assert one.returncode == 0, one.stderr
    said = one.stderr.splitlines()
    why = "nothing that counts was measured"
    first = next(n for n, text in enumerate(said) if text.startswith("block 2/3"))
    assert any(text.startswith(f"warning: a: {why} in the first block: all 4 requests") for text in said[:first])

    (tmp_path / "results" / "baselines.json").unlink()
    both = cmp(*asked, "-o", "b.short=2")
    assert both.returncode == 1
    assert both.stderr.splitlines()[-1].startswith("cmp: nothing was measured: all 12 requests flagged short_output; ")
    assert not (tmp_path / "results" / "baselines.json").exists()
    run = max(path.parent for path in (tmp_path / "results").glob("*/manifest.json"))
    again = cmp("run", "--resume", run)
    assert again.returncode == 1
    assert not (tmp_path / "results" / "baselines.json").exists()


def test_a_resumed_run_is_done_as_it_was_asked(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    slow = ["--engines", "a=fake,b=fake", "-o", "a.clock=real", "-o", "a.decode_us=30000", "--reference", "fake"]
    with start(line, tmp_path, *slow, "--out", "a b", "--save-baseline", "base", "--no-sensors") as process:
        wait_for_samples(tmp_path, 9, "a b")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    (advice,) = (text.partition("kept: ")[2] for text in said.splitlines() if text.startswith("interrupted"))
    words = shlex.split(advice)
    assert words[:3] == ["cmp", "run", "--resume"]
    done = cmp(*words[1:])
    assert done.returncode == 0, done.stderr
    run = tmp_path / words[3]
    assert read_manifest(run).status == "complete"
    assert msgspec.json.decode((folder / "baselines.json").read_bytes()) == {"base": run.name}


def test_gates_leave_nothing_behind(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    left = tmp_path / "results" / "old" / "logs" / "gate-x1"
    left.mkdir(parents=True)
    (left / "reference.f32").write_bytes(b"x")
    done = cmp(*line, "--engines", "fake", "--reference", "fake", "--blocks", "1")
    assert done.returncode == 0, done.stderr
    assert [path for path in (tmp_path / "results").glob("*/logs/*") if not path.name.endswith(".log")] == []


def test_the_command_of_a_plan_works_as_printed(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    (tmp_path / "a b.toml").write_text((tmp_path / "mini.toml").read_text())
    asked = [*line, "--no-gate", "--engines", "a=fake,b=fake", "-o", "a.launch_sd=0.01", "--scenario", "./a b.toml"]
    done = cmp(*asked, "--no-sensors")
    assert done.returncode == 0, done.stderr
    planned = cmp("stats", only_run(tmp_path / "results"), "--plan")
    (command,) = [text.partition(": ")[2] for text in planned.stdout.splitlines() if " --blocks " in text]
    words = shlex.split(command)
    assert words[:4] == ["cmp", "run", "--engines", "a=fake,b=fake"]
    assert words[words.index("--scenario") + 1] == str(tmp_path / "a b.toml")
    assert "--seed" not in words
    again = cmp(*words[1:], "--dry-run")
    assert again.returncode == 0, again.stderr
    assert "a, b on " in again.stdout


def test_the_reason_of_an_empty_run_is_what_ended_its_launches(tmp_path: Path) -> None:
    cell = Cell(prompt_tokens=8, output_tokens=4, concurrency=4)
    place: dict[str, Any] = {"block": 0, "order": 0, "launch": "b0-a", "engine": "a", "cell": cell, "phase": "measure"}
    stamps: dict[str, Any] = {"intended_ns": 1, "start_ns": 1, "token_ns": [], "end_ns": 2}
    sizes = {"prompt_tokens": 8, "output_tokens": 0}
    samples = [
        Sample(**place, **stamps, **sizes, index=index, status="error", error="its reason went with the worker")
        for index in range(3)
    ]
    over = [
        LaunchRecord(launch=f"b{block}-a", block=block, engine="a", status="error", seconds=1.0, error="a: no kernel")
        for block in range(2)
    ]
    (tmp_path / SAMPLES).write_bytes(b"".join(msgspec.json.encode(sample) + b"\n" for sample in samples))
    (tmp_path / LAUNCHES).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in over))
    assert without_result(tmp_path, ["a", "b"]) == {"a": "both launches failed: a: no kernel"}
