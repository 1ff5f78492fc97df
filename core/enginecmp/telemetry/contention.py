"""How much of the machine others used while a request ran.

Spin-barrier engines lose 10 to 50 times their speed when one thread is preempted, so every sample carries what
the rest of the machine did in its window. Read twice a request, outside the timed part, about 50 µs each.
"""

from __future__ import annotations

import functools
import os
import resource
from pathlib import Path

import msgspec

from enginecmp.format.flags import Flag

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SHARED = (Flag.FOREIGN_CPU, Flag.CPU_PRESSURE, Flag.STEAL)
_CPUACCT = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")


class Reading(msgspec.Struct, frozen=True):
    """Counters at one moment, in seconds since some origin, except the switches.

    Attributes:
        busy_seconds: CPU time of the whole machine; None where it cannot be read.
        own_seconds: CPU time of this process.
        pressure_seconds: time in which some runnable task waited for a CPU (PSI); None without PSI.
        steal_seconds: CPU time that the hypervisor took; None where it cannot be read.
        involuntary_switches: how often a thread of this process was preempted.
    """

    busy_seconds: float | None
    own_seconds: float
    pressure_seconds: float | None
    steal_seconds: float | None
    involuntary_switches: int


class ContentionSensor:
    """Reads the counters through file descriptors that stay open.

    CPU time of the machine comes from the root cgroup's `cpuacct.usage` (nanoseconds) where that file covers
    the whole machine, else from /proc/stat, whose unit is 10 ms: `resolution_seconds` says which.
    """

    def __init__(self) -> None:
        self._stat = _open("/proc/stat")
        self._pressure = _open("/proc/pressure/cpu")
        self._cpuacct: int | None = None
        self.resolution_seconds = len(os.sched_getaffinity(0)) / _TICKS_PER_SECOND
        ticks = self._read_stat()
        if ticks is not None and (fd := _open(str(_CPUACCT))) is not None:
            # In a container this file covers the container alone; the root's agrees with /proc/stat since boot.
            total = int(os.pread(fd, 64, 0)) / 1e9
            if abs(total - ticks[0]) < 0.05 * ticks[0] + 1.0:
                self._cpuacct = fd
                self.resolution_seconds = 0.001
            else:
                os.close(fd)

    def _read_stat(self) -> tuple[float, float] | None:
        if self._stat is None:
            return None
        return busy_and_steal_seconds(os.pread(self._stat, 256, 0).split(b"\n", 1)[0])

    def read(self) -> Reading:
        """Return the counters now."""
        ticks = self._read_stat()
        busy = ticks[0] if ticks else None
        if self._cpuacct is not None:
            busy = int(os.pread(self._cpuacct, 64, 0)) / 1e9
        pressure = None
        if self._pressure is not None:
            pressure = pressure_seconds(os.pread(self._pressure, 256, 0))
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Reading(
            busy_seconds=busy,
            own_seconds=usage.ru_utime + usage.ru_stime,
            pressure_seconds=pressure,
            steal_seconds=ticks[1] if ticks else None,
            involuntary_switches=usage.ru_nivcsw,
        )


@functools.cache
def _host_sensor() -> ContentionSensor:
    return ContentionSensor()


class CellWindow:
    """What others did while one cell of a launch was measured, from now on; read by the host, between samples.

    Samples of a millisecond are too short for the coarse counters of Linux, a cell of them is not.
    """

    def __init__(self) -> None:
        self._before = _host_sensor().read()

    def metrics(self, engine_cpu_seconds: float) -> dict[str, float]:
        """Return names with units, as `between`, of the time since the beginning.

        Args:
            engine_cpu_seconds: CPU time of the engine's process in its samples; that of this process is known.
        """
        found = between(self._before, _host_sensor().read())
        own = without_engine({**found, "engine_cpu_seconds": engine_cpu_seconds})
        return {f"{flag}_seconds": own[f"{flag}_seconds"] for flag in _SHARED if f"{flag}_seconds" in own}


def busy_and_steal_seconds(line: bytes) -> tuple[float, float]:
    """Return the busy and the stolen time of one cpu line of /proc/stat, in seconds since boot."""
    # cpu user nice system idle iowait irq softirq steal guest guest_nice
    ticks = [int(field) for field in line.split()[1:]]
    busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6]
    return busy / _TICKS_PER_SECOND, (ticks[7] if len(ticks) > 7 else 0) / _TICKS_PER_SECOND


def pressure_seconds(content: bytes) -> float:
    """Return the "some" total of a file of /proc/pressure, in seconds since boot."""
    # some avg10=0.00 avg60=0.00 avg300=0.00 total=12345 (microseconds)
    return int(content.split(b"\n", 1)[0].rpartition(b"total=")[2]) / 1e6


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def between(before: Reading, after: Reading) -> dict[str, float]:
    """Return what happened between two readings, names with units; what cannot be read is absent, not zero."""
    own = after.own_seconds - before.own_seconds
    found = {
        "process_cpu_seconds": own,
        "involuntary_switches": float(after.involuntary_switches - before.involuntary_switches),
    }
    if before.busy_seconds is not None and after.busy_seconds is not None:
        # The two clocks tick apart, so a quiet window can come out slightly negative.
        found["foreign_cpu_seconds"] = max(0.0, after.busy_seconds - before.busy_seconds - own)
    if before.pressure_seconds is not None and after.pressure_seconds is not None:
        found["cpu_pressure_seconds"] = after.pressure_seconds - before.pressure_seconds
    if before.steal_seconds is not None and after.steal_seconds is not None:
        found["steal_seconds"] = after.steal_seconds - before.steal_seconds
    return found


def without_engine(metrics: dict[str, float]) -> dict[str, float]:
    """Return metrics in which other processes of the engine are no foreigners.

    An engine that computes in processes of its own (a server) says so with the metric `engine_cpu_seconds`.
    """
    if "foreign_cpu_seconds" not in metrics or "engine_cpu_seconds" not in metrics:
        return metrics
    foreign = metrics["foreign_cpu_seconds"] - metrics["engine_cpu_seconds"]
    return {**metrics, "foreign_cpu_seconds": max(0.0, foreign)}


class Validity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a sample is left out, declared before the run and recorded in its manifest.

    Each share is of the request's wall time; a request is flagged when the share and the floor are both passed
    (the floor is what the coarse counters of Linux cannot resolve).

    Attributes:
        foreign_cpu_share: CPU time of others, as a share of one core.
        cpu_pressure_share: time in which a runnable task waited for a CPU.
        steal_share: CPU time taken by the hypervisor, as a share of one core.
        floor_seconds: less than this is never flagged.
        late_dispatch_seconds: the load generator may send 1 % of a cell's requests later than that, no more.
        late_dispatch_share: the same as a share of the cell's median latency; the stricter of the two holds.
    """

    foreign_cpu_share: float = 0.10
    cpu_pressure_share: float = 0.10
    steal_share: float = 0.10
    floor_seconds: float = 0.02
    late_dispatch_seconds: float = 0.001
    late_dispatch_share: float = 0.01

    def flags(self, metrics: dict[str, float], wall_seconds: float) -> list[str]:
        """Return the flags of one request, by these rules alone.

        Args:
            metrics: of the request, with the keys of `between`.
            wall_seconds: from its start to its end.
        """
        shares = {
            Flag.FOREIGN_CPU: self.foreign_cpu_share,
            Flag.CPU_PRESSURE: self.cpu_pressure_share,
            Flag.STEAL: self.steal_share,
        }
        return [
            flag
            for flag, share in shares.items()
            if metrics.get(f"{flag}_seconds", 0.0) > max(self.floor_seconds, share * wall_seconds)
        ]
