"""The GPU sensor against a library that is loaded as the driver's is and answers from a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nvml_replay
import pytest

from enginecmp.telemetry.nvml import LIBRARY

pytestmark = pytest.mark.skipif(nvml_replay.COMPILER is None, reason="no C compiler to build the replayed NVML with")

# Reads with the process ids given as arguments, and prints what came.
READ = """
import json, sys
from enginecmp.telemetry.nvml import NvmlSensor
from enginecmp.errors import SensorAbsent
sensor, said = NvmlSensor(), []
try:
    said.append(dict(sensor.start()))
    for pids in json.loads(sys.argv[1]):
        values, conditions = sensor.read(pids)
        said.append([dict(values), list(conditions)])
except SensorAbsent as absent:
    said.append(str(absent))
sensor.close()
print(json.dumps(said))
"""

Replay = Callable[..., list[Any]]
EVENTS = "nvmlDeviceGetCurrentClocksEventReasons"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
OUTSIDE = 99999999
"""No process here has this number."""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_replay.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def replay(library: Path, tmp_path: Path) -> Replay:
    def run(pids: list[list[int]], changes: dict[str, str | None] | None = None) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", READ, json.dumps(pids)],
            env=nvml_replay.environment(library, tmp_path / "script", changes),
            capture_output=True,
            text=True,
            check=True,
        )
        return list(json.loads(done.stdout))

    return run


def test_every_value_arrives_with_its_unit(replay: Replay) -> None:
    facts, first, second = replay([[], []])
    assert facts["driver"] == "580.95.05"
    assert facts["gpus"][0]["name"] == "Replayed GPU 80GB"
    assert facts["gpus"][0]["memory_bytes"] == 80 * 2**30
    assert facts["gpus"][0]["power_limit_watts"] == 700
    assert facts["gpus"][0]["absent"] == {}
    assert first == [
        {
            "gpu0_busy_share": 0.37,
            "gpu0_memory_bytes": 2**30,
            "gpu0_sm_mhz": 1980,
            "gpu0_memory_mhz": 2619,
            "gpu0_watts": pytest.approx(123.456),
            "gpu0_energy_joules": 5000.0,
            "gpu0_celsius": 41,
            "gpu0_foreign_processes": 0,
        },
        [],
    ]
    assert second[0]["gpu0_energy_joules"] == 5000.0


def test_energy_counts_on(replay: Replay) -> None:
    said = replay([[], [], []])
    assert said[3][0]["gpu0_energy_joules"] - said[1][0]["gpu0_energy_joules"] == 250.0


@pytest.mark.parametrize(("bits", "bad"), [(0x20, True), (0x40, True), (0x80, True), (0x08, True)])
def test_a_slowed_gpu_is_throttled_from_that_reading_on(replay: Replay, bits: int, bad: bool) -> None:
    # The first call finds out whether the board answers; the script's third is the second reading.
    said = replay([[1], [1], [1]], {EVENTS: f"1 0 1\n{EVENTS} 3 0 {bits}", PROCESSES: "1 3"})
    assert [conditions for _, conditions in said[1:]] == [[], ["gpu_throttled"], ["gpu_throttled"]]


@pytest.mark.parametrize("bits", [0x0, 0x1, 0x2, 0x4, 0x10, 0x100])
def test_idle_and_chosen_clocks_are_no_throttling(replay: Replay, bits: int) -> None:
    assert replay([[1]], {EVENTS: f"1 0 {bits}", PROCESSES: "1 3"})[1][1] == []


def test_an_older_driver_knows_the_older_name_of_the_reasons(replay: Replay) -> None:
    older = {EVENTS: None, "nvmlDeviceGetCurrentClocksThrottleReasons": "1 0 64", PROCESSES: "1 3"}
    facts, reading = replay([[1]], older)
    assert reading[1] == ["gpu_throttled"]
    assert "throttled" not in facts["gpus"][0]["absent"]


def test_what_the_board_does_not_tell_is_absent_with_the_reason(replay: Replay) -> None:
    facts, reading = replay([[]], {"nvmlDeviceGetPowerUsage": "1 3", "nvmlDeviceGetTotalEnergyConsumption": "1 4"})
    assert "gpu0_watts" not in reading[0]
    assert "gpu0_energy_joules" not in reading[0]
    assert "Not Supported" in facts["gpus"][0]["absent"]["watts"]
    assert "Insufficient Permissions" in facts["gpus"][0]["absent"]["energy_joules"]
    assert reading[0]["gpu0_celsius"] == 41


def test_a_value_that_fails_once_is_absent_once(replay: Replay) -> None:
    temperature = "nvmlDeviceGetTemperature"
    said = replay([[], [], []], {temperature: f"1 0 41\n{temperature} 3 999\n{temperature} 4 0 42"})
    assert [reading.get("gpu0_celsius") for reading, _ in said[1:]] == [41, None, 42]


def test_a_lost_gpu_ends_the_sensor(replay: Replay) -> None:
    power = "nvmlDeviceGetPowerUsage"
    said = replay([[], [], []], {power: f"1 0 1000\n{power} 3 15"})
    assert len(said) == 3
    assert "GPU 0 is lost" in said[2]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nvmlInitWithFlags": "1 4"}, "Insufficient Permissions"),
        ({"nvmlInitWithFlags": "1 9"}, "Driver Not Loaded"),
        ({"nvmlDeviceGetHandleByIndex_v2": "1 15"}, "GPU is lost"),
        ({"nvmlDeviceGetCount_v2": "1 0 0"}, "no GPU can be read"),
    ],
)
def test_a_driver_that_does_not_answer_is_absent_with_its_reason(
    replay: Replay, changes: dict[str, str | None], says: str
) -> None:
    (said,) = replay([[]], changes)
    assert says in said


def test_a_compute_process_of_somebody_else_is_foreign(replay: Replay) -> None:
    mine, other = os.getpid(), os.getppid()
    said = replay([[mine], [mine]], {PROCESSES: f"1 0 {mine}\n{PROCESSES} 3 0 {mine} {other}"})
    assert [reading["gpu0_foreign_processes"] for reading, _ in said[1:]] == [0, 1]
    assert [conditions for _, conditions in said[1:]] == [[], ["gpu_foreign_process"]]


def test_a_gpu_that_the_launch_does_not_use_says_nothing_about_it(replay: Replay) -> None:
    other = os.getppid()
    said = replay([[], [1]], {PROCESSES: f"1 0 {other}", EVENTS: "1 0 64"})
    assert said[2][0]["gpu0_foreign_processes"] == 1
    assert said[2][1] == []


def test_a_number_from_outside_a_container_that_comes_with_the_launch_is_its_own(replay: Replay) -> None:
    known = OUTSIDE - 1
    said = replay([[], [1]], {PROCESSES: f"1 0 {known}\n{PROCESSES} 3 0 {known} {OUTSIDE}"})
    assert said[1][0]["gpu0_foreign_processes"] == 1
    assert said[2][0]["gpu0_foreign_processes"] == 1
    assert said[2][1] == ["gpu_foreign_process"], "the launch uses this GPU, and so does what was there before"


def test_a_process_of_this_machine_that_comes_during_a_launch_is_foreign(replay: Replay) -> None:
    said = replay([[], [1]], {PROCESSES: f"1 0\n{PROCESSES} 3 0 {os.getppid()}"})
    assert [reading["gpu0_foreign_processes"] for reading, _ in said[1:]] == [0, 1]
    assert said[2][1] == [], "the launch does not use this GPU"


def test_the_manifest_names_the_gpu_and_the_driver(library: Path, tmp_path: Path) -> None:
    ask = "import json; from enginecmp.machine.environment import describe_environment as d; print(json.dumps(d()))"
    environments = [nvml_replay.environment(library, tmp_path / "one")]
    environments.append(nvml_replay.environment(library, tmp_path / "two", {"nvmlDeviceGetHandleByIndex_v2": "1 15"}))
    healthy, lost = (
        json.loads(subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, check=True).stdout)
        for env in environments
    )
    assert healthy["gpu"] == ["Replayed GPU 80GB"]
    assert healthy["driver"] == "580.95.05"
    assert lost["gpu"] is None
    assert "GPU is lost" in lost["gpu_reason"]


def test_without_a_driver_the_reason_names_the_library(tmp_path: Path) -> None:
    code = f"import ctypes\ntry: ctypes.CDLL({LIBRARY!r})\nexcept OSError: print('none')"
    if subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout != "none\n":
        pytest.skip("this machine has an NVIDIA driver")
    done = subprocess.run([sys.executable, "-c", READ, "[[]]"], capture_output=True, text=True, check=True)
    assert LIBRARY in json.loads(done.stdout)[0]
