"""Whole runs with sensors: what is planted is flagged exactly where it was, and no sensor can end a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import nvml_replay
import psutil
import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import only_run, read_samples

from enginecmp.format.readers import read_manifest
from enginecmp.format.records import Sample, TelemetryReading
from enginecmp.types import ModelInfo

SCENARIO = """
name = "mini"
primary_metric = "throughput_tokens_per_second"
[[cells]]
prompt_tokens = 8
output_tokens = 5
[profile.full]
blocks = 1
requests = 18
warmup_requests = 1
[validity]
floor_seconds = 1000
"""

# 0.3 s a request, on the machine's clock.
SLOW = ["-o", "fake.clock=real", "-o", "fake.decode_us=75000", "-o", "fake.launch_sd=0", "-o", "fake.request_sd=0"]


@pytest.fixture
def line(tmp_path: Path, tiny: ModelInfo) -> list[str]:
    path = tmp_path / "mini.toml"
    path.write_text(SCENARIO)
    return ["run", "--scenario", str(path), "--model", tiny.path, "--no-gate", "--engines", "fake", "--seed", "5"]


def start(line: list[str], folder: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [os.path.join(os.path.dirname(sys.executable), "cmp"), *line]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen within 60 s"
        time.sleep(0.02)
    return found


def measured(folder: Path) -> list[Sample]:
    return [sample for sample in read_samples(folder) if sample.phase == "measure"]


def lines_of(folder: Path, name: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(f"results/*/{name}"))


@pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")
def test_a_planted_gpu_throttle_flags_the_requests_under_way_then(line: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "nvml"
    folder.mkdir()
    script = tmp_path / "script"
    healthy: dict[str, str | None] = {"nvmlDeviceGetComputeRunningProcesses_v3": "1 3"}
    env = nvml_replay.environment(nvml_replay.build(folder), script, healthy)
    env["CMP_PLUGINS"] = FAKE_MODULE

    def change(reasons: int) -> None:
        changes = {**healthy, "nvmlDeviceGetCurrentClocksEventReasons": f"1 0 {reasons}"}
        nvml_replay.environment(folder, tmp_path / "next", changes)
        (tmp_path / "next").replace(script)

    with start([*line, *SLOW], tmp_path, env) as process:
        wait_for(lambda: lines_of(tmp_path, "samples.jsonl") >= 6)
        change(0x40)
        wait_for(lambda: lines_of(tmp_path, "samples.jsonl") >= 12)
        change(0x1)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    run = only_run(tmp_path / "results")
    lines = (run / "telemetry.jsonl").read_bytes().splitlines()
    gpu = [r for r in (msgspec.json.decode(text, type=TelemetryReading) for text in lines) if r.sensor == "nvml"]
    slowed = [reading.time_ns for reading in gpu if reading.conditions == ["gpu_throttled"]]
    cleared = next(reading.time_ns for reading in gpu if reading.time_ns > slowed[-1])
    # A reading takes a moment to arrive: a request that ends within it may be judged either way.
    moment_ns = 50_000_000
    for sample in measured(run):
        flagged = "gpu_throttled" in sample.flags
        if sample.end_ns < slowed[0] or sample.start_ns > cleared:
            assert not flagged, sample.index
        elif sample.end_ns > slowed[0] + moment_ns and sample.start_ns < slowed[-1]:
            assert flagged, sample.index
    count = sum("gpu_throttled" in sample.flags for sample in measured(run))
    assert 3 <= count <= 15
    assert f"{count} measured requests are flagged gpu_throttled" in said
    facts = read_manifest(run).environment["sensors"]["nvml"]["facts"]
    assert facts["gpus"][0]["name"] == "Replayed GPU 80GB"


def test_a_killed_sampler_costs_telemetry_and_nothing_else(line: list[str], tmp_path: Path) -> None:
    with start([*line, *SLOW, "--requests", "6"], tmp_path, {**os.environ, "CMP_PLUGINS": FAKE_MODULE}) as process:
        wait_for(lambda: lines_of(tmp_path, "samples.jsonl") >= 3)
        (sampler,) = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if child.cmdline()[1:4] == ["-P", "-m", "enginecmp.telemetry.sampler"]
        ]
        sampler.send_signal(signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said.count("was killed by SIGKILL; the run goes on without telemetry") == 1
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    assert manifest.status == "complete"
    assert "SIGKILL" in manifest.environment["sensors"]["sensors"]["lost"]
    assert "cores" in manifest.environment["sensors"]["cpu"]["facts"]
    assert {sample.status for sample in measured(run)} == {"ok"}
    assert len(measured(run)) == 6


def test_a_plugin_of_sensors_alone_is_read_and_is_no_engine(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    script = tmp_path / "sensors.json"
    script.write_text(json.dumps({"name": "meter", "facts": {"kind": "scripted"}, "readings": [{"values": {"w": 1}}]}))
    env = {"CMP_PLUGINS": f"{FAKE_MODULE},enginecmp.testing.fake_sensors", "FAKE_SENSORS": str(script)}
    done = cmp(*line, *SLOW, "--requests", "3", env=env)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    assert read_manifest(run).environment["sensors"]["meter"] == {"facts": {"kind": "scripted"}}
    assert b'"sensor":"meter","launch":"b0-fake","values":{"w":1.0}' in (run / "telemetry.jsonl").read_bytes()


def test_a_broken_plugin_of_sensors_is_told_and_harms_nobody(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken_meter.py").write_text(
        "import enginecmp\n@enginecmp.hookimpl\ndef cmp_telemetry():\n    raise OSError('no meter')\n"
    )
    env = {"CMP_PLUGINS": f"{FAKE_MODULE},broken_meter", "PYTHONPATH": str(tmp_path)}
    done = cmp(*line, "--requests", "3", env=env)
    assert done.returncode == 0, done.stderr
    sensors = read_manifest(only_run(tmp_path / "results")).environment["sensors"]
    assert sensors["broken_meter"] == {"absent": "broken_meter: its cmp_telemetry failed: OSError: no meter"}
    assert "facts" in sensors["process"]


def test_sensors_can_be_left_off(cmp: CommandLine, line: list[str], tmp_path: Path) -> None:
    done = cmp(*line, "--requests", "3", "--no-sensors")
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "results")
    assert not (run / "telemetry.jsonl").exists()
    assert "--no-sensors" in read_manifest(run).environment["sensors"]["sensors"]["absent"]


def test_the_list_of_engines_can_name_the_sensors(cmp: CommandLine, tmp_path: Path) -> None:
    script = tmp_path / "sensors.json"
    script.write_text(json.dumps([{"name": "meter"}, {"name": "gone", "absent": "gone: no meter; plug one in"}]))
    env = {"CMP_PLUGINS": f"{FAKE_MODULE},enginecmp.testing.fake_sensors", "FAKE_SENSORS": str(script)}
    document = json.loads(cmp("engines", "--sensors", "--json", env=env).stdout)
    assert document["sensors"]["meter"] == {"facts": {}}
    assert document["sensors"]["gone"] == {"absent": "gone: no meter; plug one in"}
    assert "fake_sensors" not in {engine["name"] for engine in document["engines"]}
    assert "gone: no meter; plug one in" in cmp("engines", "--sensors", env=env).stdout
