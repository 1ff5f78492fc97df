"""What the rest of the machine did, read by the host for a process that does not read it itself."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from enginecmp.telemetry.contention import ContentionSensor, Reading

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class OutsideSensor:
    """Contention around one process, seen from the host.

    The kernel tells another process's CPU time in ticks of 10 ms, coarser than what a worker reads of itself, and
    finer than the floor below which no request is flagged.

    Args:
        pid: the process whose own CPU time is not foreign.
    """

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self._sensor = ContentionSensor()

    def read(self) -> Reading:
        """Return the counters now; a process that is gone has used nothing since."""
        own = time.process_time()
        switches = 0
        try:
            # The name may hold blanks and brackets: fields count from behind it. 14 and 15 are utime and stime.
            fields = (self._process / "stat").read_text().rpartition(")")[2].split()
            own += (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
            for line in (self._process / "status").read_text().splitlines():
                if line.startswith("nonvoluntary_ctxt_switches:"):
                    switches = int(line.split()[1])
        except (OSError, ValueError, IndexError):
            pass
        return msgspec.structs.replace(self._sensor.read(), own_seconds=own, involuntary_switches=switches)
