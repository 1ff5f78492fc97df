"""Page cache, memory of a process, copy bandwidth: what the probes tell, on this machine and on planted ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import plant, require_droppable

from enginecmp.telemetry import bandwidth, page_cache
from enginecmp.telemetry.memory import MemorySensor, reset_peak
from enginecmp.types import LoadOptions


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A file of 8 MB, nothing of it in memory."""
    require_droppable(tmp_path)
    path = tmp_path / "pages.bin"
    path.write_bytes(b"\x5a" * (8 << 20))
    page_cache.drop(path)
    return path


def test_a_warmed_file_is_in_memory_and_a_dropped_one_is_not(pages: Path) -> None:
    page_cache.warm(pages)
    assert page_cache.resident_share(pages) == 1
    page_cache.drop(pages)
    assert page_cache.resident_share(pages) == 0


def test_a_file_just_written_is_dropped_at_once(pages: Path) -> None:
    assert page_cache.resident_share(pages) == 0


def test_half_a_file_that_was_read_is_half_in_memory(pages: Path) -> None:
    with pages.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # nothing is read ahead
        file.read(4 << 20)
    assert page_cache.resident_share(pages) == pytest.approx(0.5, abs=0.02)


def test_an_empty_file_has_no_share(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert page_cache.resident_share(tmp_path / "empty") is None


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds 80 MB for a moment, says so, and waits."""
    code = "import sys; held = b'x' * (80 << 20); del held; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        yield process
        process.kill()


def test_the_peak_of_a_process_is_known_until_it_is_reset(child: subprocess.Popen[bytes]) -> None:
    sensor = MemorySensor(child.pid)
    before = sensor.read()
    assert before["peak_rss_bytes"] > before["rss_bytes"] + (70 << 20)
    assert before["rss_bytes"] > before["rss_file_bytes"] > 0
    if not reset_peak(child.pid):
        pytest.skip("this kernel does not reset the high-water mark")
    after = sensor.read()
    assert after["peak_rss_bytes"] < before["rss_bytes"] + (10 << 20)
    sensor.close()


def test_a_process_that_is_gone_tells_nothing(child: subprocess.Popen[bytes]) -> None:
    sensor = MemorySensor(child.pid)
    child.kill()
    child.wait()
    assert sensor.read() == {}
    assert MemorySensor(child.pid).read() == {}
    assert reset_peak(child.pid) is False


class Stopwatch:
    """A clock on which the nth copy takes the nth of some durations."""

    def __init__(self, seconds: list[float]) -> None:
        self._reads = [0.0]
        for duration in seconds:
            self._reads += [self._reads[-1] + duration] * 2
        self._next = iter(self._reads)

    def __call__(self) -> float:
        return next(self._next)


def test_bandwidth_is_bytes_read_and_written_by_the_best_copy_of_the_largest_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The first copy of each size takes the page faults and does not count, however quick it seems.
    small = [0.001, *[4.0] * 9, 2.0]
    large = [0.001, 8.0, 5.0, *[8.0] * 8]
    monkeypatch.setattr(bandwidth.time, "perf_counter", Stopwatch(small + large))
    found = bandwidth.measure_copy(2, sizes=[1 << 16, 1 << 17])
    assert isinstance(found, bandwidth.CopyBandwidth)
    assert found.best == (2 * (1 << 16) / 2.0, 2 * (1 << 17) / 5.0)
    assert found.bytes_per_second == found.best[-1]
    assert (found.threads, found.array_bytes, found.repeats) == (2, (1 << 16, 1 << 17), 10)


def test_arrays_are_four_and_eight_times_the_largest_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 1 << 16)
    monkeypatch.setattr(bandwidth, "_LEAST_BYTES", 1)
    found = bandwidth.measure_copy(1)
    assert isinstance(found, bandwidth.CopyBandwidth)
    assert found.array_bytes == (1 << 18, 1 << 19)


def test_a_machine_without_room_for_the_arrays_has_a_reason_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 1 << 50)
    found = bandwidth.measure_copy(1)
    assert isinstance(found, str)
    assert "do not fit the free memory" in found


def test_a_run_on_another_device_has_a_reason_instead() -> None:
    facts = bandwidth.probe([LoadOptions(), LoadOptions(device="cuda")], lambda line: pytest.fail(line))
    assert facts == {"copy_bandwidth": {"absent": "it is measured on the CPU, engines run on cuda"}}


def test_a_run_is_told_what_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(bandwidth, "last_level_cache_bytes", lambda: 1 << 50)
    facts = bandwidth.probe([LoadOptions()], said.append)
    assert list(facts) == ["copy_bandwidth"]
    assert said == [f"copy bandwidth: not measured: {facts['copy_bandwidth']['absent']}"]


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    plant(tmp_path, index0__size="32K\n", index2__size="1024K\n", index3__size="36M\n")
    assert bandwidth.last_level_cache_bytes(tmp_path) == 36 << 20
    assert bandwidth.last_level_cache_bytes(tmp_path / "none") == 0
