"""What the sensors read, held against planted files and against processes whose size is known."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import plant

from enginecmp.errors import SensorAbsent
from enginecmp.telemetry.cpu import CpuSensor
from enginecmp.telemetry.process import ProcessSensor
from enginecmp.telemetry.rapl import RaplSensor
from enginecmp.telemetry.tree import ProcessTree

MEGABYTE = 2**20

# Allocates and touches memory, starts what the second argument says, and tells when it is ready.
SIZED = """
import subprocess, sys, time
block = bytearray(int(sys.argv[1]) * 2**20)
if len(sys.argv) > 2:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[2], *sys.argv[3:]], stdout=subprocess.PIPE)
    child.stdout.readline()
print("ready", flush=True)
time.sleep(60)
"""


def stat(*cores: tuple[int, int, int]) -> str:
    """Return a /proc/stat of cores with (user, idle, steal) ticks."""
    rows = [tuple(map(sum, zip(*cores, strict=True))), *cores]
    names = ["cpu", *(f"cpu{number}" for number in range(len(cores)))]
    lines = [f"{name} {row[0]} 0 0 {row[1]} 0 0 0 {row[2]} 0 0" for name, row in zip(names, rows, strict=True)]
    return "\n".join([*lines, "intr 1", ""])


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A machine of two cores with everything that Linux can tell of a processor."""
    plant(
        tmp_path,
        proc__stat=stat((100, 1000, 0), (100, 1000, 0)),
        proc__pressure__cpu="some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0 total=0\n",
        sys__class__thermal__thermal_zone0__type="acpitz",
        sys__class__thermal__thermal_zone0__temp="20000",
        sys__class__thermal__thermal_zone1__type="x86_pkg_temp",
        sys__class__thermal__thermal_zone1__temp="71500",
    )
    for core, mhz in enumerate((3000, 2000)):
        folder = f"sys__devices__system__cpu__cpu{core}"
        plant(tmp_path, **{f"{folder}__cpufreq__scaling_cur_freq": f"{mhz * 1000}\n"})
        plant(tmp_path, **{f"{folder}__thermal_throttle__core_throttle_count": "7\n"})
    return tmp_path


def test_every_value_of_the_processor_is_read(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("enginecmp.telemetry.cpu.time.monotonic", lambda: now)
    sensor = CpuSensor(planted)
    facts = sensor.start()
    assert facts["cores"] == 2
    assert facts["absent"] == {}
    # Two seconds later: core 0 was busy for 1 s of them, core 1 for 0.5 s with 0.2 s stolen (100 ticks a second).
    now = 102.0
    plant(planted, proc__stat=stat((200, 1100, 0), (150, 1130, 20)))
    plant(planted, proc__pressure__cpu="some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull total=0\n")
    values, conditions = sensor.read(())
    sensor.close()
    assert values == {
        "cpu_busy_cores": pytest.approx(0.75),
        "cpu0_busy_share": pytest.approx(0.5),
        "cpu1_busy_share": pytest.approx(0.25),
        "steal_cores": pytest.approx(0.1),
        "cpu_pressure_share": pytest.approx(0.25),
        "cpu_mhz": pytest.approx(2500.0),
        "cpu_celsius": pytest.approx(71.5),
    }
    assert conditions == []


def test_a_processor_that_got_too_hot_is_throttled_until_it_no_longer_is(planted: Path) -> None:
    sensor = CpuSensor(planted)
    sensor.start()
    said = [sensor.read(())[1]]
    plant(planted, sys__devices__system__cpu__cpu1__thermal_throttle__core_throttle_count="9\n")
    said += [sensor.read(())[1], sensor.read(())[1]]
    sensor.close()
    assert said == [[], ["cpu_throttled"], []]


def test_what_a_machine_does_not_tell_of_its_processor_is_absent_with_the_reason(tmp_path: Path) -> None:
    plant(tmp_path, proc__stat=stat((100, 1000, 0)))
    sensor = CpuSensor(tmp_path)
    facts = sensor.start()
    values, _ = sensor.read(())
    sensor.close()
    assert set(facts["absent"]) == {"cpu_pressure_share", "cpu_mhz", "cpu_celsius", "cpu_throttled"}  # type: ignore[call-overload]
    assert set(values) == {"cpu_busy_cores", "cpu0_busy_share", "steal_cores"}


def test_without_proc_there_is_no_cpu_sensor(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsent, match="/proc/stat"):
        CpuSensor(tmp_path).start()


@pytest.fixture
def sized() -> Iterator[subprocess.Popen[bytes]]:
    """A process of 150 MB with a child of 50 MB."""
    command = [sys.executable, "-c", SIZED, "150", SIZED, "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        for pid in ProcessTree(process.pid).pids()[1:]:
            os.kill(pid, 9)
        process.kill()


def test_memory_and_threads_are_those_of_all_processes_of_a_launch(sized: subprocess.Popen[bytes]) -> None:
    pids = ProcessTree(sized.pid).pids()
    assert len(pids) == 2
    sensor = ProcessSensor()
    assert sensor.start() == {"absent": {}}
    values, conditions = sensor.read(pids)
    # An interpreter takes about 10 MB of its own.
    assert 200 * MEGABYTE < values["process_rss_bytes"] < 250 * MEGABYTE
    assert 200 * MEGABYTE < values["process_pss_bytes"] < values["process_rss_bytes"]
    assert values["process_threads"] == 2
    assert values["minor_faults"] > 200 * MEGABYTE / 4096 / 512  # even with huge pages
    assert conditions == []


def test_the_costly_proportional_size_is_read_less_often(sized: subprocess.Popen[bytes]) -> None:
    sensor = ProcessSensor()
    pids = ProcessTree(sized.pid).pids()
    assert ["process_pss_bytes" in sensor.read(pids)[0] for _ in range(3)] == [True, False, False]


def test_faults_of_a_child_that_ended_still_count(sized: subprocess.Popen[bytes]) -> None:
    sensor = ProcessSensor()
    pids = ProcessTree(sized.pid).pids()
    before = sensor.read(pids)[0]
    os.kill(pids[1], 9)
    end = time.monotonic() + 10
    while (after := sensor.read(pids)[0])["process_rss_bytes"] > 200 * MEGABYTE and time.monotonic() < end:
        time.sleep(0.02)
    assert after["process_rss_bytes"] < 200 * MEGABYTE
    assert after["minor_faults"] >= before["minor_faults"]


def test_between_launches_there_is_nothing_to_read_of_processes() -> None:
    assert ProcessSensor().read(()) == ({}, [])
    assert ProcessTree(2**22 + 1).pids() == ()


def domain(root: Path, number: str, name: str, microjoules: int, range_microjoules: int = 1000_000_000) -> None:
    folder = f"sys__class__powercap__intel-rapl:{number}"
    plant(root, **{f"{folder}__name": f"{name}\n", f"{folder}__energy_uj": f"{microjoules}\n"})
    plant(root, **{f"{folder}__max_energy_range_uj": f"{range_microjoules}\n"})


def test_energy_is_the_sum_of_packages_since_the_start_across_a_wrap(tmp_path: Path) -> None:
    domain(tmp_path, "0", "package-0", 5_000_000)
    domain(tmp_path, "0:0", "core", 1_000_000)
    domain(tmp_path, "0:1", "dram", 100)
    domain(tmp_path, "1", "package-1", 999_000_000)
    sensor = RaplSensor(tmp_path)
    assert sensor.start() == {"domains": ["package-0", "dram", "package-1"]}
    domain(tmp_path, "0", "package-0", 8_000_000)
    domain(tmp_path, "0:1", "dram", 500_100)
    domain(tmp_path, "1", "package-1", 1_000_000)  # 1 J to the end of its range, 1 J behind it
    first, _ = sensor.read(())
    domain(tmp_path, "0", "package-0", 9_000_000)
    second, _ = sensor.read(())
    sensor.close()
    assert first == {"cpu_energy_joules": pytest.approx(5.0), "dram_energy_joules": pytest.approx(0.5)}
    assert second["cpu_energy_joules"] == pytest.approx(6.0)


def test_a_machine_without_counters_has_no_energy_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(SensorAbsent, match="virtual machines have none"):
        RaplSensor(tmp_path).start()


def test_counters_that_this_user_may_not_read_are_absent_with_what_fixes_it() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        domain(root, "0", "package-0", 5_000_000)
        for path in [root, *root.rglob("*")]:
            path.chmod(0o755)
        (root / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0o400)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may read everything
        else:
            (root / "sys/class/powercap/intel-rapl:0/energy_uj").chmod(0o000)
        try:
            with pytest.raises(SensorAbsent, match=r"may not read .*; allow it with: sudo chmod a\+r "):
                RaplSensor(root).start()
        finally:
            os.seteuid(user)
