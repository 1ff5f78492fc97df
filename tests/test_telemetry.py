"""The sensors' process and the host's side of it: what is written, what is flagged, and what no failure can harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from enginecmp import clock
from enginecmp.format.files import TELEMETRY
from enginecmp.format.records import TelemetryReading
from enginecmp.telemetry.conditions import INTERVALS, ConditionPages
from enginecmp.telemetry.watch import Telemetry

FAKE_SENSORS = "enginecmp.testing.fake_sensors"


def pages() -> Iterator[ConditionPages]:
    fd, made = ConditionPages.create()
    os.close(fd)
    yield made
    made.close()


conditions = pytest.fixture(pages)


def test_a_condition_flags_what_overlaps_it_and_nothing_else(conditions: ConditionPages) -> None:
    conditions.note("gpu", [], 0, 100, 0)
    conditions.note("gpu", ["hot"], 100, 200, 500)
    conditions.note("gpu", ["hot"], 200, 300, 600)
    conditions.note("gpu", [], 300, 400, 0)
    found = {span: conditions.overlapping(*span) for span in [(0, 99), (90, 110), (250, 260), (390, 450), (401, 500)]}
    assert found == {(0, 99): [], (90, 110): ["hot"], (250, 260): ["hot"], (390, 450): ["hot"], (401, 500): []}


def test_a_condition_that_nobody_confirms_any_more_ends(conditions: ConditionPages) -> None:
    conditions.note("gpu", ["hot"], 100, 100, 500)
    assert conditions.overlapping(450, 460) == ["hot"]
    assert conditions.overlapping(501, 600) == []


def test_earlier_intervals_are_kept_for_requests_that_are_judged_late(conditions: ConditionPages) -> None:
    for number in range(10):
        conditions.note("gpu", ["hot"], 1000 * number, 1000 * number, 1000 * number + 100)
        conditions.note("gpu", [], 1000 * number, 1000 * number + 100, 0)
    assert conditions.overlapping(3050, 3060) == ["hot"]
    assert conditions.overlapping(3200, 3300) == []
    for number in range(10, 10 + INTERVALS):
        conditions.note("gpu", ["hot"], 1000 * number, 1000 * number, 1000 * number + 100)
        conditions.note("gpu", [], 1000 * number, 1000 * number + 100, 0)
    assert conditions.overlapping(1000 * INTERVALS, 1000 * INTERVALS + 1) == ["hot"]


def test_two_sensors_with_one_condition_do_not_end_each_others(conditions: ConditionPages) -> None:
    conditions.note("one", ["hot"], 0, 100, 1000)
    conditions.note("two", ["hot"], 0, 100, 1000)
    conditions.note("two", [], 100, 200, 0)
    assert conditions.overlapping(500, 600) == ["hot"]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what the fake sensors read; called again, it changes that at once."""
    path = tmp_path / "sensors.json"
    monkeypatch.setenv("FAKE_SENSORS", str(path))

    def write(*sensors: dict[str, Any]) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(sensors))
        temporary.replace(path)

    return write


def readings(folder: Path, sensor: str) -> list[TelemetryReading]:
    try:
        lines = (folder / TELEMETRY).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    every = [msgspec.json.decode(line, type=TelemetryReading) for line in lines]
    return [reading for reading in every if reading.sensor == sensor]


def wait_for(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + 20
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen within 20 s"
        time.sleep(0.02)
    return found


def test_readings_carry_the_launch_the_clock_and_every_finite_value(
    tmp_path: Path, script: Callable[..., None]
) -> None:
    script(
        {"name": "fake", "facts": {"made": "up"}, "readings": [{"values": {"a_watts": 4.5, "b_watts": float("nan")}}]}
    )
    before = clock.now_ns()
    with Telemetry(tmp_path, print, [FAKE_SENSORS]) as telemetry:
        facts = telemetry.facts()
        telemetry.watch("b0-x", os.getpid())
        wait_for(lambda: [r for r in readings(tmp_path, "fake") if r.launch == "b0-x"])
        wait_for(lambda: [r for r in readings(tmp_path, "process") if r.launch == "b0-x"])
        telemetry.idle()
        wait_for(lambda: readings(tmp_path, "fake")[-1].launch == "")
    assert facts["fake"] == {"facts": {"made": "up"}}
    found = readings(tmp_path, "fake")
    assert all(reading.values == {"a_watts": 4.5} for reading in found)
    assert before < found[0].time_ns < found[-1].time_ns < clock.now_ns()


METER = """
from enginecmp import hookimpl

class Meter:
    name = "meter"
    period_seconds = 0.001

    def start(self):
        {start}
        return {{}}

    def read(self, pids):
        {read}
        return {{"a_watts": 1.0}}, ()

    def close(self):
        pass

@hookimpl
def cmp_telemetry():
    return [Meter()]
"""


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a plugin with one sensor and return its module."""

    def write(read: str, start: str = "pass") -> str:
        (tmp_path / "one_meter.py").write_text(METER.format(read=read, start=start))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "one_meter"

    return write


def test_no_more_than_ten_readings_a_second(tmp_path: Path, meter: Callable[..., str]) -> None:
    with Telemetry(tmp_path, print, [meter("pass")]):
        wait_for(lambda: len(readings(tmp_path, "meter")) >= 6)
    found = [reading.time_ns for reading in readings(tmp_path, "meter")]
    assert (found[-1] - found[0]) / (len(found) - 1) > 0.09e9


def test_a_costly_sensor_is_read_less_often(tmp_path: Path, meter: Callable[..., str]) -> None:
    # 0.8 ms of CPU time are 0.08 % of a core when they come once a second.
    costly = "import time; end = time.thread_time() + 0.0008\n        while time.thread_time() < end: pass"
    with Telemetry(tmp_path, print, [meter(costly)]):
        wait_for(lambda: len(readings(tmp_path, "meter")) >= 7)
    # Three readings tell what one costs. Of the four waits that follow the first may be short (all sensors wake on one
    # grid), three take 0.8 s or more; at the pace it asked for all four would take 0.4 s.
    times = [reading.time_ns for reading in readings(tmp_path, "meter")]
    assert times[6] - times[2] > 1.5e9


def test_a_sensor_that_does_not_start_in_time_is_absent(tmp_path: Path, meter: Callable[..., str]) -> None:
    with Telemetry(tmp_path, print, [meter("pass", "import time; time.sleep(60)")]) as telemetry:
        facts = telemetry.facts()
    assert facts["meter"] == {"absent": "meter: did not start within 3 s"}
    assert "facts" in facts["cpu"]


def test_a_condition_becomes_a_flag_and_ends(tmp_path: Path, script: Callable[..., None]) -> None:
    script({"name": "fake", "readings": [{"conditions": ["gpu_throttled"]}]})
    with Telemetry(tmp_path, print, [FAKE_SENSORS]) as telemetry:
        wait_for(lambda: telemetry.flags(clock.now_ns(), clock.now_ns()) == ["gpu_throttled"])
        script({"name": "fake", "readings": [{"conditions": []}]})
        wait_for(lambda: telemetry.flags(clock.now_ns(), clock.now_ns()) == [])
    assert readings(tmp_path, "fake")[0].conditions == ["gpu_throttled"]


def test_what_cannot_be_read_is_absent_with_its_reason_and_has_no_readings(
    tmp_path: Path, script: Callable[..., None]
) -> None:
    script({"name": "gone", "absent": "gone: no such meter; buy one"}, {"name": "fake", "readings": []})
    with Telemetry(tmp_path, print, [FAKE_SENSORS, "no_such_module"]) as telemetry:
        facts = telemetry.facts()
        wait_for(lambda: readings(tmp_path, "fake"))
    assert facts["gone"] == {"absent": "gone: no such meter; buy one"}
    assert "ModuleNotFoundError" in facts["no_such_module"]["absent"]
    assert readings(tmp_path, "gone") == []


@pytest.mark.parametrize(
    ("read", "says"),
    [
        ("return {5: 1.0}, ()", "expected names of values, letters, digits and _, at most 64, got 5"),
        (r"return {'\x1b[2J': 1.0}, ()", "expected names of values"),
        ("return {'a_watts': '5'}, ()", "expected numbers, got text as a_watts"),
        ("return {'a_watts': None}, ()", "TypeError"),
        ("return {'a_watts': 10**400}, ()", "OverflowError"),
        ("return {f'a{n}': 1.0 for n in range(1000)}, ()", "expected at most 256 values"),
        ("return {}, 'hot'", "a sequence of conditions"),
        ("return {}, [5]", "TypeError"),
        ("return None", "TypeError"),
        (r"raise RuntimeError('\x1b]0;title\x07' + 'x' * 10**8)", r"RuntimeError: \x1b]0;title\x07xxx"),
        ("raise type('E', (Exception,), {'__str__': lambda self: 5})", "E: its message cannot be read"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_a_reading_that_is_none_ends_its_sensor_in_a_bounded_line(
    read: str, says: str, tmp_path: Path, meter: Callable[..., str]
) -> None:
    said: list[str] = []
    with Telemetry(tmp_path, said.append, [meter(read)]) as telemetry:
        telemetry.facts()
        wait_for(lambda: telemetry.idle() or "lost" in telemetry.facts()["meter"])
        assert "cores" in telemetry.facts()["cpu"]["facts"]
    assert says in said[0]
    assert len(said) == 1
    assert len(said[0]) < 700
    assert said[0].isprintable()


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("return {'fact': 'x' * 100_000}", "expected at most 65536 bytes of facts, got 100011"),
        (r"return {'fact': '\ud800'}", "UnicodeEncodeError"),
        ("return {'fact': 2**70}", "OverflowError"),
        ("return 5", "TypeError"),
    ],
)
def test_facts_that_no_manifest_can_hold_make_their_sensor_absent(
    start: str, says: str, tmp_path: Path, meter: Callable[..., str]
) -> None:
    with Telemetry(tmp_path, print, [meter("pass", start)]) as telemetry:
        facts = telemetry.facts()
    assert says in facts["meter"]["absent"]
    assert "cores" in facts["cpu"]["facts"]


def test_a_plugin_that_does_not_name_its_sensors_costs_its_own_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = "from enginecmp import hookimpl\n@hookimpl\ndef cmp_telemetry():\n    import time\n    time.sleep(3600)\n"
    (tmp_path / "hanging_meter.py").write_text(hook)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Telemetry(tmp_path, print, ["hanging_meter"]) as telemetry:
        facts = telemetry.facts()
    assert "TimeoutError: no answer within 3 s" in facts["hanging_meter"]["absent"]
    assert "cores" in facts["cpu"]["facts"]


def test_two_sensors_cannot_share_a_name(tmp_path: Path, script: Callable[..., None]) -> None:
    script({"name": "cpu"})
    with Telemetry(tmp_path, print, [FAKE_SENSORS]) as telemetry:
        facts = telemetry.facts()
    assert "cores" in facts["cpu"]["facts"]
    assert "'cpu' is already there" in facts[FAKE_SENSORS]["absent"]


@pytest.mark.parametrize(("act", "says"), [("lost", "scripted to be lost"), ("error", "RuntimeError: scripted error")])
def test_a_lost_sensor_is_told_once_and_the_others_go_on(
    tmp_path: Path, script: Callable[..., None], act: str, says: str
) -> None:
    said: list[str] = []
    script({"name": "fake", "readings": [{"conditions": ["gpu_throttled"]}, {"from": 3, "act": act}]}, {"name": "fine"})
    with Telemetry(tmp_path, said.append, [FAKE_SENSORS]) as telemetry:
        telemetry.facts()
        wait_for(lambda: telemetry.idle() or "lost" in telemetry.facts()["fake"])
        before = len(readings(tmp_path, "fine"))
        wait_for(lambda: len(readings(tmp_path, "fine")) > before)
        telemetry.idle()
        assert telemetry.flags(clock.now_ns(), clock.now_ns()) == [], "nobody says that it still holds"
        assert says in telemetry.facts()["fake"]["lost"]
        assert telemetry.facts()["fake"]["facts"] == {}
    assert [line for line in said if says in line] == said
    assert len(said) == 1


def test_a_hanging_sensor_holds_nobody_up(tmp_path: Path, script: Callable[..., None]) -> None:
    script({"name": "fake", "readings": [{"act": "hang"}]}, {"name": "fine"})
    with Telemetry(tmp_path, print, [FAKE_SENSORS]) as telemetry:
        telemetry.facts()
        wait_for(lambda: len(readings(tmp_path, "fine")) > 3)
        process = psutil.Process(telemetry.pid)
    assert not process.is_running()


@pytest.mark.parametrize(
    ("act", "says"),
    [("kill", "was killed by SIGKILL"), ("stop", "was stopped (SIGSTOP)"), ("exit", "exited with code 7")],
)
def test_a_sensor_of_a_plugin_that_ends_the_sampler_costs_those_of_plugins_alone(
    tmp_path: Path, script: Callable[..., None], act: str, says: str
) -> None:
    said: list[str] = []
    script({"name": "fake", "readings": [{"values": {"a_watts": 1.0}}, {"from": 3, "act": act}]})
    with Telemetry(tmp_path, said.append, [FAKE_SENSORS]) as telemetry:
        telemetry.facts()
        first = telemetry.pid
        wait_for(lambda: telemetry.idle() or said)
        facts = telemetry.facts()
        assert "cores" in facts["cpu"]["facts"]
        assert "lost" not in facts["cpu"], "ours were started anew"
        assert says in facts["fake"]["lost"]
        assert f"went on without those of {FAKE_SENSORS}" in facts["plugins"]["lost"]
        assert not psutil.pid_exists(first)
        before = len(readings(tmp_path, "cpu"))
        telemetry.watch("b0-x", os.getpid())
        wait_for(lambda: len(readings(tmp_path, "cpu")) > before + 1)
        telemetry.idle()
    assert "b0-x" in {reading.launch for reading in readings(tmp_path, "cpu")}
    assert len(said) == 1
    assert says in said[0]
    assert f"ours go on without those of {FAKE_SENSORS}" in said[0]


def test_a_plugin_that_ends_the_sampler_before_it_starts_costs_those_of_plugins_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ending_meter.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    with Telemetry(tmp_path, said.append, ["ending_meter"]) as telemetry:
        facts = telemetry.facts()
    assert "exited with code 3" in facts["plugins"]["absent"]
    assert "cores" in facts["cpu"]["facts"]
    assert len(said) == 1


def test_a_killed_sampler_without_plugins_is_told_once_and_ends_telemetry_alone(tmp_path: Path) -> None:
    said: list[str] = []
    with Telemetry(tmp_path, said.append) as telemetry:
        telemetry.facts()
        os.kill(telemetry.pid, signal.SIGKILL)
        wait_for(lambda: telemetry.idle() or said)
        telemetry.watch("b0-x", os.getpid())
        telemetry.idle()
        assert telemetry.flags(0, clock.now_ns()) == []
        assert "SIGKILL" in telemetry.facts()["sensors"]["lost"]
    assert len(said) == 1
    assert "was killed by SIGKILL; the run goes on without telemetry" in said[0]


def test_a_full_disk_ends_the_file_and_not_the_flags(tmp_path: Path, script: Callable[..., None]) -> None:
    said: list[str] = []
    (tmp_path / TELEMETRY).symlink_to("/dev/full")
    script({"name": "fake", "readings": [{"conditions": ["gpu_throttled"]}]})
    with Telemetry(tmp_path, said.append, [FAKE_SENSORS]) as telemetry:
        wait_for(lambda: telemetry.flags(clock.now_ns(), clock.now_ns()))
        telemetry.idle()
    assert len(said) == 1
    assert "No space left" in said[0]


def test_a_torn_last_line_of_an_earlier_start_is_cut_off(tmp_path: Path, script: Callable[..., None]) -> None:
    whole = b'{"time_ns":1,"sensor":"old","launch":"","values":{},"conditions":[]}\n'
    (tmp_path / TELEMETRY).write_bytes(whole + b'{"time_ns":2,"sens')
    script({"name": "fake"})
    with Telemetry(tmp_path, print, [FAKE_SENSORS]):
        wait_for(lambda: (tmp_path / TELEMETRY).read_bytes().count(b"\n") > 2)
    assert len(readings(tmp_path, "old")) == 1


HOST = """
import os, sys, time
from pathlib import Path
from enginecmp.telemetry.watch import Telemetry
with Telemetry(Path(sys.argv[1]), print, sys.argv[2:]) as telemetry:
    telemetry.facts()
    print(telemetry.pid, flush=True)
    time.sleep(60)
"""


def test_the_sampler_dies_with_the_host_whatever_a_sensor_does(tmp_path: Path, meter: Callable[..., str]) -> None:
    # PyDLL keeps the interpreter's lock: no other thread of the sampler ever runs again.
    module = meter("import ctypes; open('stuck', 'w').close(); ctypes.PyDLL(None).sleep(60)")
    command = [sys.executable, "-c", HOST, str(tmp_path), module]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as host:
        assert host.stdout is not None
        sampler = psutil.Process(int(host.stdout.readline()))
        wait_for((tmp_path / "stuck").exists)
        host.send_signal(signal.SIGKILL)
    wait_for(lambda: not sampler.is_running() or sampler.status() == psutil.STATUS_ZOMBIE)


def test_without_sensors_nothing_is_started_or_written(tmp_path: Path) -> None:
    with Telemetry(None, print) as telemetry:
        telemetry.watch("b0-x", os.getpid())
        telemetry.idle()
        assert telemetry.flags(0, clock.now_ns()) == []
        assert telemetry.facts() == {"sensors": {"absent": "switched off with --no-sensors"}}
    assert list(tmp_path.iterdir()) == []
