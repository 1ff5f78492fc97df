"""The process between the host and a worker: nothing of a launch is left, its log stays small, its pauses are seen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions
from enginecmp.wire.descriptors import shared_memory
from enginecmp.wire.guarded import GuardedProcess
from enginecmp.wire.guardian import LOG_BYTES, LOG_HEAD_BYTES, LOG_TAIL_BYTES, LogCap, Pauses

SLEEP = (sys.executable, "-c", "import time; time.sleep(3600)")

# Starts a process that leaves its session, its group and its parent, and then does what ENDING says.
LEAVER = """
import os, subprocess, sys, time
from pathlib import Path
from enginecmp import EngineInfo, hookimpl

@hookimpl
def cmp_engine():
    return EngineInfo(name="leaver", version="1", licence="MIT", devices=("cpu",), architectures=("llama",),
                      quantizations=("F32",))

@hookimpl
def cmp_probe(options):
    code = "import os, time; os.setsid(); os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(3600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, close_fds=False)
    Path(options.extra["pid"]).write_bytes(child.stdout.readline())
    ENDING
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait for what must come; the time only bounds how long a failure takes."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def guarded(tmp_path: Path, *command: str) -> Iterator[GuardedProcess]:
    process = GuardedProcess(command or SLEEP, tmp_path / "log", (), os.environ)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def leaver(fake: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Launch]:
    """Return a launch of an engine that leaves a process behind, and ends as it is told."""

    def launch(ending: str) -> Launch:
        (tmp_path / "cmp_test_leaver.py").write_text(LEAVER.replace("ENDING", ending))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        plugin = Plugin(name="leaver", module="cmp_test_leaver", info=fake.info)
        options = LoadOptions(extra={"pid": str(tmp_path / "pid")})
        return Launch("leaver", plugin, log=tmp_path / "log", options=options)

    return launch


def left_behind(tmp_path: Path) -> int:
    return int((tmp_path / "pid").read_text())


def test_a_child_in_a_session_of_its_own_ends_with_the_launch(leaver: Callable[[str], Launch], tmp_path: Path) -> None:
    with leaver("pass") as launch:
        launch.probe(20)
        assert psutil.pid_exists(left_behind(tmp_path))
    assert not psutil.pid_exists(left_behind(tmp_path))


def test_a_child_that_holds_the_socket_does_not_hide_an_exit(leaver: Callable[[str], Launch], tmp_path: Path) -> None:
    with (
        pytest.raises(LaunchFailure, match=r"leaver: exited with code 9 in probe") as failure,
        leaver("os._exit(9)") as it,
    ):
        it.probe(20)
    assert failure.value.status == "crash"
    assert not psutil.pid_exists(left_behind(tmp_path))


def test_no_zombie_is_left_of_a_launch(leaver: Callable[[str], Launch]) -> None:
    with leaver("pass") as launch:
        guardian = psutil.Process(launch.pid).parent()
        assert guardian is not None
        launch.probe(20)
    assert not guardian.is_running()
    assert [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE] == []


def test_the_guardian_is_no_part_of_the_worker(tmp_path: Path) -> None:
    with guarded(tmp_path) as process:
        worker = psutil.Process(process.pid)
        assert worker.children() == []
        assert os.getsid(process.pid) == process.pid
        assert worker.parent().children() == [worker]


def test_a_killed_guardian_takes_the_worker_along_at_the_latest_at_the_end(tmp_path: Path) -> None:
    with guarded(tmp_path) as process:
        guardian = psutil.Process(process.pid).parent()
        guardian.kill()
    assert until(lambda: not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == "zombie")


def test_a_stopped_guardian_does_not_keep_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enginecmp.wire.guarded._GRACE_SECONDS", 0.2)
    with guarded(tmp_path) as process:
        psutil.Process(process.pid).parent().suspend()
    assert process.killed
    assert until(lambda: not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == "zombie")


def test_exit_code_and_peak_memory_come_from_the_worker(tmp_path: Path) -> None:
    with guarded(tmp_path, sys.executable, "-c", "b'x' * (64 << 20); raise SystemExit(3)") as process:
        process.reap(30)
    assert process.returncode == 3
    assert process.how_it_ended() == "exited with code 3"
    assert process.peak_rss_bytes is not None
    assert 64 << 20 < process.peak_rss_bytes < 128 << 20


def test_a_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"of an earlier launch\n")
    begin = log.stat().st_size
    cap = LogCap(str(log), begin)
    with open(log, "ab") as file:
        file.write(b"first words\n" + b"x" * LOG_BYTES + b"\nlast words\n")
    assert cap.check()
    assert not cap.check()
    content = log.read_bytes()
    assert content.startswith(b"of an earlier launch\nfirst words\nxxx")
    assert content.endswith(b"xxx\nlast words\n")
    left_out = 12 + LOG_BYTES + 12 - LOG_HEAD_BYTES - LOG_TAIL_BYTES
    note = f"\n[cmp: about {left_out} bytes were left out here: a log keeps its beginning and its end]\n".encode()
    assert content[begin + LOG_HEAD_BYTES :].startswith(note)
    assert len(content) == begin + LOG_HEAD_BYTES + len(note) + LOG_TAIL_BYTES


def test_an_engine_that_prints_without_end_cannot_fill_the_disk(tmp_path: Path) -> None:
    with guarded(
        tmp_path, sys.executable, "-c", "import os\nfor _ in range(150): os.write(1, b'y' * (1 << 20))"
    ) as process:
        process.reap(60)
    assert process.returncode == 0
    assert (tmp_path / "log").stat().st_size <= LOG_BYTES
    assert b"bytes were left out here" in (tmp_path / "log").read_bytes()


def test_what_prints_elsewhere_than_into_a_file_is_left_alone() -> None:
    assert not LogCap("/dev/null", 0).check()


def test_a_stopped_worker_is_seen_for_as_long_as_it_stood_still(tmp_path: Path) -> None:
    with guarded(tmp_path) as process:
        before_ns = time.perf_counter_ns()
        assert not process.stood_still(before_ns, before_ns)
        os.kill(process.pid, signal.SIGSTOP)
        assert until(lambda: process.stood_still(time.perf_counter_ns(), time.perf_counter_ns()))
        os.kill(process.pid, signal.SIGCONT)
        assert until(lambda: not process.stood_still(time.perf_counter_ns(), time.perf_counter_ns()))
        after_ns = time.perf_counter_ns()
        assert process.stood_still(before_ns, after_ns)
        assert not process.stood_still(after_ns, after_ns)


PARENT = """
import os, time
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(3600)
"""


def test_a_stopped_child_of_the_worker_is_seen_for_as_long_as_it_stood_still(tmp_path: Path) -> None:
    with guarded(tmp_path, sys.executable, "-c", PARENT) as process:
        assert until(lambda: (tmp_path / "log").read_text().endswith("\n"))
        child = int((tmp_path / "log").read_text())
        before_ns = time.perf_counter_ns()
        os.kill(child, signal.SIGSTOP)
        assert until(lambda: process.stood_still(before_ns, time.perf_counter_ns()))
        os.kill(child, signal.SIGCONT)
        assert until(lambda: not process.stood_still(time.perf_counter_ns(), time.perf_counter_ns()))
        after_ns = time.perf_counter_ns()
        assert process.stood_still(before_ns, after_ns)
        assert not process.stood_still(after_ns, after_ns)


def test_a_pause_that_ends_late_is_the_one_that_is_ended() -> None:
    fd = shared_memory("test", Pauses.SIZE)
    pauses = Pauses(fd)
    os.close(fd)
    stopped = pauses.note(10)
    pauses.note(20, 30)
    pauses.end(stopped, 40)
    assert pauses.overlap(35, 35, 0)
    assert not pauses.overlap(41, 50, 0)
    pauses.close()


def test_a_guardian_that_did_not_run_stood_still_with_everything_else(tmp_path: Path) -> None:
    fd = shared_memory("test", Pauses.SIZE)
    pauses, second = Pauses(fd), 1_000_000_000
    os.close(fd)
    pauses.beat(10 * second)
    assert not pauses.overlap(9 * second, 11 * second, 11 * second)
    assert pauses.overlap(9 * second, 15 * second, 15 * second)
    assert not pauses.overlap(8 * second, 9 * second, 15 * second)
    pauses.note(10 * second, 15 * second)
    pauses.beat(15 * second)
    assert pauses.overlap(14 * second, 16 * second, 16 * second)
    assert not pauses.overlap(16 * second, 17 * second, 16 * second)
    for start in range(20, 20 + 2 * 64):
        pauses.note(start * second, start * second + 1)
    assert pauses.overlap(147 * second, 147 * second, 15 * second)
    pauses.close()


def test_memory_that_is_shared_with_an_engine_cannot_be_cut_under_the_host() -> None:
    fd = shared_memory("test", 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_closed_standard_streams_are_no_descriptors_of_a_worker(fake: Plugin, tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from enginecmp.launch.launch import Launch\n"
        "from enginecmp.plugins.discovery import examine\n"
        "from enginecmp.types import LoadOptions\n"
        "fake = examine('fake', 'enginecmp.testing.fake_engine', '', '')\n"
        "with Launch('fake', fake, log=Path(sys.argv[1]), options=LoadOptions()) as launch:\n"
        "    assert launch.probe(20).ok\n"
        "    Path(sys.argv[2]).write_text('measured')\n"
    )
    done, log = tmp_path / "done", tmp_path / "log"
    line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, str(log), str(done)]
    assert subprocess.run(line, check=False).returncode == 0
    assert done.read_text() == "measured"
