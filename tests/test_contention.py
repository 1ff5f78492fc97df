from __future__ import annotations

import subprocess
import sys
import time

import pytest

from enginecmp.telemetry.contention import ContentionSensor, Reading, Validity, between
from enginecmp.telemetry.idle import Busyness, measure_busyness

BUSY_LOOP = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


def reading(busy: float | None = 0, own: float = 0, pressure: float | None = 0, steal: float | None = 0) -> Reading:
    return Reading(busy, own, pressure, steal, 3)


def test_own_work_is_not_foreign() -> None:
    sensor = ContentionSensor()
    before = sensor.read()
    end = time.perf_counter() + 0.4
    while time.perf_counter() < end:
        pass
    found = between(before, sensor.read())
    assert found["process_cpu_seconds"] > 0.1
    busy = found["process_cpu_seconds"] + found["foreign_cpu_seconds"]
    assert found["process_cpu_seconds"] <= busy


def test_work_of_another_process_is_foreign() -> None:
    sensor = ContentionSensor()
    before = sensor.read()
    subprocess.run([sys.executable, "-c", BUSY_LOOP.format(seconds=0.5)], check=True)
    found = between(before, sensor.read())
    assert found["foreign_cpu_seconds"] > 0.1
    assert found["process_cpu_seconds"] < 0.1


def test_what_cannot_be_read_is_absent_not_zero() -> None:
    found = between(reading(busy=None, pressure=None, steal=None), reading(busy=None, pressure=None, steal=None))
    assert set(found) == {"process_cpu_seconds", "involuntary_switches"}


def test_the_difference_of_two_readings() -> None:
    found = between(reading(10.0, 4.0, 1.0, 0.5), reading(12.5, 6.0, 1.25, 0.6))
    assert found["process_cpu_seconds"] == pytest.approx(2.0)
    assert found["foreign_cpu_seconds"] == pytest.approx(0.5)
    assert found["cpu_pressure_seconds"] == pytest.approx(0.25)
    assert found["steal_seconds"] == pytest.approx(0.1)
    assert found["involuntary_switches"] == 0


def test_clocks_that_tick_apart_never_give_negative_work() -> None:
    assert between(reading(10.0, 4.0), reading(10.9, 5.0))["foreign_cpu_seconds"] == 0.0


@pytest.mark.parametrize(
    ("metrics", "wall_seconds", "flags"),
    [
        ({"foreign_cpu_seconds": 0.11}, 1.0, ["foreign_cpu"]),
        ({"foreign_cpu_seconds": 0.09}, 1.0, []),
        ({"foreign_cpu_seconds": 0.015}, 0.1, []),  # more than the share, less than the floor
        ({"cpu_pressure_seconds": 0.2, "steal_seconds": 0.2}, 1.0, ["cpu_pressure", "steal"]),
        ({}, 1.0, []),
    ],
)
def test_the_declared_rules_alone_decide_the_flags(
    metrics: dict[str, float], wall_seconds: float, flags: list[str]
) -> None:
    rules = Validity(foreign_cpu_share=0.1, cpu_pressure_share=0.1, steal_share=0.1, floor_seconds=0.02)
    assert rules.flags(metrics, wall_seconds) == flags


def test_a_busy_machine_is_seen_and_described() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY_LOOP.format(seconds=3)]) as hog:
        found = measure_busyness(1.0)
        hog.terminate()
    assert found.busy
    assert "cores" in found.describe()


def test_an_unknown_is_not_called_busy() -> None:
    assert not Busyness(None, None, 9.0).busy
