"""The micro benchmark: rehearsed where nothing is timed, and its arithmetic where something is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enginecmp_custom_cuda.bench import micro
from enginecmp_custom_cuda.bench.measurement import Measurement, record, table
from enginecmp_custom_cuda.device import Device

WHAT = ["read", "launch in a stream", "launch, the host's part", "node of a graph", "barrier of the grid"]


def test_every_measurement_does_its_work(device: Device) -> None:
    found = list(micro.measure(device, repetitions=3))
    assert list(dict.fromkeys(one.name for one in found)) == WHAT
    assert all(one.verified for one in found)
    assert {len(one.seconds) for one in found} == ({3} if device.timed else {0})
    assert all(second > 0 for one in found for second in one.seconds)


def test_the_command_shows_a_table_and_writes_every_value(device: Device, tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    command = [sys.executable, "-m", "enginecmp_custom_cuda.bench.micro", "--device", device.kind, "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    content = json.loads(path.read_text())
    assert content["schema"] == "enginecmp-custom-cuda-bench/1"
    assert content["device"]["timed"] == device.timed
    assert len(content["measurements"]) == len(done.stdout.splitlines()) - 2
    assert ("not timed" in done.stdout) == (not device.timed)
    assert " NO\n" not in done.stdout


def test_a_measurement_is_judged_by_its_median() -> None:
    one = Measurement("read", {"grid": 8, "bytes": 1000}, (3e-6, 1e-6, 2e-6), True, 1000)
    assert (one.median, one.bytes_per_second) == (2e-6, 5e8)
    lines = table([one, Measurement("node of a graph", {"grid": 1}, (), False)]).splitlines()
    assert lines == [
        "what             how                median     range  n  bandwidth  verified",
        "read             grid=8 bytes=1000  2 us       1..3   3  0 GB/s     yes",
        "node of a graph  grid=1             not timed                       NO",
    ]


def test_an_untimed_measurement_has_no_numbers(device: Device) -> None:
    content = record(device, [Measurement("read", {}, (), True, 1000)])
    assert content["measurements"][0]["median"] is None
    assert content["measurements"][0]["bytes_per_second"] is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.234e-6, "1.23"), (5e-7, "0.5"), (1.23456e-3, "1235"), (9.996e-5, "100")]
)
def test_microseconds_keep_three_digits(seconds: float, text: str) -> None:
    from enginecmp_custom_cuda.bench.measurement import microseconds

    assert microseconds(seconds) == text
