"""The processor: use of each core, clock, temperature, pressure, steal, and whether it was throttled.

Everything is read from files that stay open; what a machine does not have is absent, with the reason among the facts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from enginecmp.errors import SensorAbsent
from enginecmp.telemetry.contention import busy_and_steal_seconds, pressure_seconds

_CLOCKS = 8
"""Cores whose clock is read: the kernel may have to ask each core for it."""

_STAT_BYTES = 1 << 16
_PACKAGE_SENSORS = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "TCPU", "coretemp", "k10temp", "zenpower")


class CpuSensor:
    """Reads the processor.

    Args:
        root: where /proc and /sys are.
    """

    name = "cpu"
    period_seconds = 0.5

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._files: list[int] = []
        self._pressure: int | None = None
        self._clocks: list[int] = []
        self._temperature: int | None = None
        self._throttles: list[int] = []
        self._last: tuple[float, dict[bytes, tuple[float, float]], float | None] | None = None
        self._last_throttles = 0

    def start(self) -> Mapping[str, object]:
        """Open the files and return what there is and what there is not.

        Raises:
            SensorAbsent: without /proc/stat nothing can be told.
        """
        stat = self._open(self._root / "proc/stat")
        if stat is None:
            msg = "cpu: expected /proc/stat, cannot read it"
            raise SensorAbsent(msg)
        self._stat = stat
        self._pressure = self._open(self._root / "proc/pressure/cpu")
        cpus = self._root / "sys/devices/system/cpu"
        clocks = sorted(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"), key=lambda path: int(path.parts[-3][3:]))
        step = max(1, len(clocks) // _CLOCKS)
        self._clocks = [fd for path in clocks[::step][:_CLOCKS] if (fd := self._open(path)) is not None]
        thermometer = self._thermometer()
        self._temperature = self._open(thermometer) if thermometer else None
        counters = sorted(cpus.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        self._throttles = [fd for path in counters if (fd := self._open(path)) is not None]
        self._last_throttles = sum(map(_number, self._throttles))
        self._last = self._counters()
        missing = {
            "cpu_pressure_share": None if self._pressure is not None else "this kernel has no PSI",
            "cpu_mhz": None if self._clocks else "no cpufreq here, as in most virtual machines",
            "cpu_celsius": None if self._temperature is not None else "no thermometer of the processor here",
            "cpu_throttled": None if self._throttles else "no thermal_throttle counters here",
        }
        return {
            "cores": len(self._last[1]) - 1,
            "clocks_read": len(self._clocks),
            "thermometer": str(thermometer) if thermometer else None,
            "absent": {name: reason for name, reason in missing.items() if reason},
        }

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return shares since the last reading, clock and temperature now."""
        now = self._counters()
        last, self._last = self._last, now
        assert last is not None
        wall = now[0] - last[0]
        values: dict[str, float] = {}
        if wall > 0:
            for name, (busy, steal) in now[1].items():
                if name not in last[1]:
                    continue  # a core came online
                # Counters of single cores tick apart from the clock, and some kernels let them step back.
                share = max(0.0, busy - last[1][name][0]) / wall
                if name == b"cpu":
                    values["cpu_busy_cores"] = share
                    values["steal_cores"] = max(0.0, steal - last[1][name][1]) / wall
                else:
                    values[f"{name.decode()}_busy_share"] = min(1.0, share)
            if now[2] is not None and last[2] is not None:
                values["cpu_pressure_share"] = max(0.0, now[2] - last[2]) / wall
        with contextlib.suppress(OSError, ValueError):
            if self._clocks:
                values["cpu_mhz"] = sum(map(_number, self._clocks)) / len(self._clocks) / 1e3
        with contextlib.suppress(OSError, ValueError):
            if self._temperature is not None:
                values["cpu_celsius"] = _number(self._temperature) / 1e3
        throttles = self._last_throttles
        with contextlib.suppress(OSError, ValueError):
            throttles = sum(map(_number, self._throttles))
        hot = throttles > self._last_throttles
        self._last_throttles = throttles
        return values, ["cpu_throttled"] if hot else []

    def close(self) -> None:
        """Close the files."""
        for fd in self._files:
            os.close(fd)
        self._files = []

    def _counters(self) -> tuple[float, dict[bytes, tuple[float, float]], float | None]:
        """Return the time, busy and stolen seconds of the machine and each core, and the pressure."""
        cores = {}
        for line in os.pread(self._stat, _STAT_BYTES, 0).split(b"\n"):
            if not line.startswith(b"cpu"):
                break  # cpu lines come first
            cores[line.split(b" ", 1)[0]] = busy_and_steal_seconds(line)
        pressure = None if self._pressure is None else pressure_seconds(os.pread(self._pressure, 256, 0))
        return time.monotonic(), cores, pressure

    def _thermometer(self) -> Path | None:
        """Return the file with the temperature of the processor's package, in thousandths of a degree."""
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            if _text(zone / "type") in _PACKAGE_SENSORS:
                return zone / "temp"
        for monitor in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            if _text(monitor / "name") in _PACKAGE_SENSORS:
                return monitor / "temp1_input"
        return None

    def _open(self, path: Path) -> int | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        self._files.append(fd)
        return fd


def _number(fd: int) -> int:
    return int(os.pread(fd, 32, 0))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
