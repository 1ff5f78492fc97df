"""Whole runs with concurrent load through the command line, and what `cmp` says of them."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import only_run, read_samples

from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import Sample
from enginecmp.types import ModelInfo

ENGINES = {"CMP_PLUGINS": f"{FAKE_MODULE},enginecmp.testing.fake_queue"}

# The machine that runs the tests is busy, and its generator may be late: nothing is to be left out for that.
CALM = """
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""

CONCURRENT = """
name = "crowd"
primary_metric = "throughput_tokens_per_second"
burstiness = 0.5
[goodput]
ttft_seconds = 1.0
[[cells]]
prompt_tokens = 8
output_tokens = 4
[[cells]]
prompt_tokens = 8
output_tokens = 4
concurrency = 4
[[cells]]
prompt_tokens = 8
output_tokens = 4
concurrency = 4
arrival = "gamma"
rate_per_second = 100
[profile.full]
blocks = 2
requests = 10
warmup_requests = 1
"""

SUSTAINED = """
name = "steady"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 4
concurrency = 4
[profile.full]
blocks = 2
requests = 8
seconds = 0.3
warmup_requests = 1
"""

SWEEP = """
name = "rising"
primary_metric = "saturation_requests_per_second"
offered_load = [0.5, 1.3]
[[cells]]
prompt_tokens = 8
output_tokens = 4
concurrency = 4
[profile.full]
blocks = 2
requests = 10
warmup_requests = 1
"""

REAL = ["-o", "a.clock=real", "-o", "b.clock=real", "-o", "a.decode_us=2000", "-o", "b.decode_us=2000"]


@pytest.fixture
def crowd(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo) -> CommandLine:
    """`cmp run` of a scenario text: engine a batches by itself, b queues."""

    def call(scenario: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "mine.toml").write_text(scenario + CALM)
        line = ["run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--seed", "5", "--no-sensors"]
        return cmp(*line, "--engines", "a=fake,b=fake_queue", *REAL, *arguments, env=ENGINES)

    return call


def of(samples: list[Sample], engine: str, concurrency: int, arrival: str = "") -> list[Sample]:
    return [
        s
        for s in samples
        if s.engine == engine and s.phase == "measure" and s.cell.concurrency == concurrency
        and (s.cell.arrival or "") == arrival
    ]  # fmt: skip


def test_a_run_has_every_request_and_the_same_arrivals_for_all(crowd: CommandLine, tmp_path: Path) -> None:
    done = crowd(CONCURRENT)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    samples = read_samples(run)
    assert {s.status for s in samples} == {"ok"}
    for engine in "ab":
        assert [len(of(samples, engine, *cell)) for cell in ((1,), (4,), (4, "gamma"))] == [20, 20, 20]
    assert {tuple(s.flags) for s in samples} == {(), ("repeated_prompt",)}
    manifest = read_manifest(run)
    assert {e.name: e.options["batching"] for e in manifest.engines} == {"a": "continuous", "b": "queue"}
    assert {e.name: e.options["max_sequences"] for e in manifest.engines} == {"a": 4, "b": 1}
    assert "b queues requests first in, first out" in done.stderr

    gaps = {}
    for engine in "ab":
        for block in (0, 1):
            due = [s.intended_ns for s in of(samples, engine, 4, "gamma") if s.block == block]
            gaps[engine, block] = [later - first for first, later in itertools.pairwise(due)]
    assert gaps["a", 0] == gaps["b", 0]
    assert gaps["a", 1] == gaps["b", 1]
    assert gaps["a", 0] != gaps["a", 1]


def test_a_sustained_run_is_told_and_compared(crowd: CommandLine, cmp: CommandLine, tmp_path: Path) -> None:
    done = crowd(SUSTAINED)
    assert done.returncode == 0, done.stderr
    samples = read_samples(only_run(tmp_path / "results"))
    for launch in ("b0-a", "b0-b", "b1-a", "b1-b"):
        sent = [s.intended_ns for s in samples if s.launch == launch and s.phase == "measure"]
        assert len(sent) >= 8
        assert sent[-1] - sent[0] < 0.3e9, "nobody sends after the time"
    shown = cmp("stats", "--all", "results", env=ENGINES)
    assert shown.returncode == 0, shown.stderr
    assert "throughput_tokens_per_second" in shown.stdout
    assert "4 users" in shown.stdout


def test_a_sweep_offers_shared_rates_up_to_a_limit_and_at_least_three(crowd: CommandLine, tmp_path: Path) -> None:
    done = crowd(SWEEP, "-o", "b.decode_us=20000")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    scenario = read_manifest(run).scenario
    found = scenario["calibration"]
    # Three steps of 20 ms behind each other against four users' three steps of 2 ms at once: at least 5 times.
    assert found["a"] > 5 * found["b"] > 0
    rates = [cell["rate_per_second"] for cell in scenario["cells"]]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.5 * found["b"], rel=0.01)
    assert rates[-1] == pytest.approx(1.3 * found["a"], rel=0.01)
    offered = {engine: set() for engine in "ab"}
    for sample in read_samples(run):
        if sample.phase == "measure":
            offered[sample.engine].add(sample.cell.rate_per_second)
    assert len(offered["b"]) >= 3
    assert max(offered["b"]) == pytest.approx(1.3 * found["b"], rel=0.11)
    assert {rate for rate in offered["a"] if rate <= 1.3 * found["b"]} <= offered["b"]
    assert offered["a"] | offered["b"] == set(rates)
    assert "sweep: b is offered" in done.stderr
    assert (run / "calibration.jsonl").read_text().count("\n") > 8


def test_an_engine_that_cannot_be_calibrated_is_left_out_of_a_sweep(crowd: CommandLine, tmp_path: Path) -> None:
    done = crowd(SWEEP, "-o", "b.fault=crash@prefill")
    assert done.returncode == 0, done.stderr
    assert "calibration: b: left out: b: " in done.stderr
    assert "SIGSEGV" in done.stderr
    assert {s.engine for s in read_samples(only_run(tmp_path / "results"))} == {"a"}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [os.path.join(os.path.dirname(sys.executable), "cmp"), *arguments],
        cwd=folder,
        env={**os.environ, **ENGINES},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_requests(journal: Path, number: int) -> None:
    end = time.monotonic() + 60
    while not journal.exists() or journal.read_bytes().count(b"\n") < number:
        assert time.monotonic() < end, "the run measured nothing"
        time.sleep(0.005)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_neither_worker_nor_generator_outlives_the_host(tmp_path: Path, tiny: ModelInfo, stop: signal.Signals) -> None:
    (tmp_path / "mine.toml").write_text(SUSTAINED.replace("requests = 8", "requests = 500") + CALM)
    line = ["run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--no-sensors"]
    line += ["--engines", "a=fake", *REAL[:2], *REAL[4:6], "-o", f"a.journal={tmp_path / 'journal'}"]
    with start(tmp_path, *line) as process:
        wait_for_requests(tmp_path / "journal", 5)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(stop)
        process.communicate(timeout=30)
    assert len(family) >= 2
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


def test_ctrl_c_in_a_cell_keeps_what_was_finished_and_a_sweep_resumes_with_its_rates(
    cmp: CommandLine, tmp_path: Path, tiny: ModelInfo
) -> None:
    # A line on stderr is all that tells from outside that the first launch of the plan is under way.
    (tmp_path / "mine.toml").write_text(SWEEP.replace("requests = 10", "requests = 25") + CALM)
    line = ["run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--seed", "5", "--no-sensors"]
    line += ["--engines", "a=fake", "-o", "a.clock=real", "-o", "a.decode_us=8000"]
    line += ["-o", f"a.journal={tmp_path / 'journal'}"]
    with start(tmp_path, *line) as process:
        assert process.stderr is not None
        said = ""
        while "sweep:" not in said:
            said = process.stderr.readline()
            assert said
        journal = tmp_path / "journal"
        wait_for_requests(journal, journal.read_bytes().count(b"\n") + 10)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    run = only_run(tmp_path / "results")
    cut = [s for s in read_samples(run) if s.phase != "load"]
    assert len(cut) >= 9
    assert {s.status for s in cut} == {"ok"}
    manifest = read_manifest(run)
    assert manifest.status == "interrupted"

    resumed = cmp("run", "--resume", run, "--model", tiny.path, "--no-sensors", env=ENGINES)
    assert resumed.returncode == 0, resumed.stderr
    assert "calibration:" not in resumed.stderr
    after = read_manifest(run)
    assert after.scenario["cells"] == manifest.scenario["cells"]
    assert after.scenario["calibration"] == manifest.scenario["calibration"]
    assert [r.launch.partition(".")[0] for r in finished_launches(run)] == ["b0-a", "b1-a"]
    valid = [s for s in read_samples(run) if s.phase == "measure" and not s.flags]
    assert Counter(s.block for s in valid) == {0: 75, 1: 75}
    assert all("torn_launch" in s.flags for s in read_samples(run) if s.launch == cut[0].launch)


def test_a_cached_prompt_shows_in_the_last_two_requests_of_a_launch(crowd: CommandLine, tmp_path: Path) -> None:
    cost = ["-o", "a.prefill_us=3000", "-o", "b.prefill_us=3000", "-o", "b.prefix_cache=1"]
    done = crowd(SUSTAINED, *cost)
    assert done.returncode == 0, done.stderr
    samples = read_samples(only_run(tmp_path / "results"))
    ratios = {}
    for engine in "ab":
        mine = [s for s in samples if s.engine == engine]
        pairs = [(mine[n - 1], s) for n, s in enumerate(mine) if "repeated_prompt" in s.flags]
        assert len(pairs) == 2, "one a launch"
        assert {(s.phase, s.output_tokens) for pair in pairs for s in pair} == {("warmup", 1)}
        assert len({s.index for s in mine if s.phase == "warmup" and s.block == 0}) == 6
        ratios[engine] = [(s.token_ns[0] - s.start_ns) / (f.token_ns[0] - f.start_ns) for f, s in pairs]
    # 24 ms of prompt against none: the fake engine sleeps for what it has to pay.
    assert max(ratios["b"]) < 0.7 < min(ratios["a"])


def test_an_overloaded_engine_is_told_with_its_launch(crowd: CommandLine, tmp_path: Path) -> None:
    only = CONCURRENT[: CONCURRENT.index("[[cells]]")] + CONCURRENT[CONCURRENT.rindex("[[cells]]") :]
    flood = only.replace("rate_per_second = 100", "rate_per_second = 400").replace("requests = 10", "requests = 200")
    done = crowd(flood + "[overload]\nqueue_requests = 10\n", "-o", "b.decode_us=10000")
    assert done.returncode == 0, done.stderr
    assert "b                " in done.stderr
    assert "overloaded: " in done.stderr
    samples = read_samples(only_run(tmp_path / "results"))
    assert any(s.status == "timeout" for s in samples if s.engine == "b")
    assert all(r.notes for r in finished_launches(only_run(tmp_path / "results")) if r.engine == "b")


def test_the_fake_clock_is_refused_with_the_option_that_mends_it(crowd: CommandLine) -> None:
    done = crowd(SUSTAINED, "-o", "a.clock=fake", "-o", "b.clock=fake", "--blocks", "3")
    assert done.returncode == 1
    assert "pass clock=real" in done.stderr
