"""What a sensor is: something that tells how the machine is doing, ten times a second at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from enginecmp.errors import CmpError


class SensorAbsent(CmpError):
    """This machine, or this user, cannot read the sensor; the message is the reason that people are shown."""


class Sensor(Protocol):
    """One family of readings. Lives in the sensors' process.

    Attributes:
        name: lower case, unique, e.g. "nvml".
        period_seconds: wanted time between two readings; never less than 0.1.
    """

    name: str
    period_seconds: float

    def start(self) -> Mapping[str, object]:
        """Open what is needed and return facts for the manifest (device names, limits, units).

        Raises:
            SensorAbsent: it cannot be read here; the reason goes into the manifest, and no value is invented.
        """
        ...

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return values (unit in the name) and conditions (flags for the requests under way).

        Args:
            pids: the processes of the launch under way; empty between launches. Others are foreign.

        Raises:
            SensorAbsent: it is lost (a GPU fell off the bus); told once, then no longer read.
        """
        ...

    def close(self) -> None:
        """Let everything go."""
        ...
