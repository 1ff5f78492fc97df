"""How busy the machine is before a run starts, and waiting until it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import msgspec

from enginecmp.telemetry.contention import ContentionSensor, between

BUSY_CORES = 0.10
"""Foreign work above this share of one core is worth a warning: from there on samples are flagged."""


class Busyness(msgspec.Struct, frozen=True):
    """Foreign work over a short window.

    Attributes:
        foreign_cores: CPU time of others over wall time; None where it cannot be read.
        steal_cores: CPU time that the hypervisor took over wall time; None where it cannot be read.
        load_average: of the last minute.
    """

    foreign_cores: float | None
    steal_cores: float | None
    load_average: float

    @property
    def busy(self) -> bool:
        """Whether a measurement would suffer."""
        return (self.foreign_cores or 0.0) > BUSY_CORES or (self.steal_cores or 0.0) > BUSY_CORES

    def describe(self) -> str:
        """Return one line for people."""
        foreign = "unknown" if self.foreign_cores is None else f"{self.foreign_cores:.2f} cores"
        return f"others use {foreign} (load average {self.load_average:.2f})"


def measure_busyness(seconds: float = 0.5) -> Busyness:
    """Sleep for a while and return what the rest of the machine did."""
    sensor = ContentionSensor()
    before = sensor.read()
    start = time.perf_counter()
    time.sleep(seconds)
    wall = time.perf_counter() - start
    found = between(before, sensor.read())
    # A counter of 10 ms ticks shows one tick of noise as foreign work.
    foreign = found.get("foreign_cpu_seconds")
    steal = found.get("steal_seconds")
    return Busyness(
        foreign_cores=None if foreign is None else max(0.0, foreign - sensor.resolution_seconds) / wall,
        steal_cores=None if steal is None else steal / wall,
        load_average=os.getloadavg()[0],
    )


def wait_until_idle(limit_seconds: float, say: Callable[[str], None]) -> bool:
    """Wait until three quiet seconds in a row, or until the limit.

    Args:
        limit_seconds: how long at most.
        say: told once why we wait.

    Returns:
        Whether the machine became quiet.
    """
    end = time.monotonic() + limit_seconds
    quiet = 0
    told = False
    while quiet < 3:
        now = measure_busyness(1.0)
        quiet = 0 if now.busy else quiet + 1
        if now.busy and not told:
            say(f"waiting for an idle machine: {now.describe()}")
            told = True
        if time.monotonic() > end:
            return quiet >= 3
    return True
