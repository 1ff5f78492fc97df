"""The launch's processes: resident and proportional memory, page faults, threads."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from enginecmp.errors import SensorAbsent

_PSS_SHARE = 0.0005
"""PSS walks every page table entry, tens of milliseconds for gigabytes: it may take this share of a core."""

_PSS_SECONDS = 2.0


class ProcessSensor:
    """Reads the processes of the launch under way; between launches it reads nothing.

    Args:
        proc: where /proc is.
    """

    name = "process"
    period_seconds = 0.5

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._root_pid = 0
        self._faults: dict[int, tuple[int, int]] = {}
        self._next_pss = 0.0

    def start(self) -> Mapping[str, object]:
        """Say what can be read.

        Raises:
            SensorAbsent: there is no /proc.
        """
        if not (self._proc / "self/stat").exists():
            msg = "process: expected /proc/self/stat, there is none"
            raise SensorAbsent(msg)
        if (self._proc / "self/smaps_rollup").exists():
            return {"absent": {}}
        return {"absent": {"process_pss_bytes": "this kernel has no smaps_rollup"}}

    def read(self, pids: Sequence[int]) -> tuple[Mapping[str, float], Sequence[str]]:
        """Return the sums over all processes; the proportional set size only now and then."""
        if pids and pids[0] != self._root_pid:
            self._root_pid = pids[0]
            self._faults = {}
            self._next_pss = 0.0
        resident = threads = 0
        alive = []
        for pid in pids:
            try:
                with open(f"{self._proc}/{pid}/stat", "rb", buffering=0) as file:
                    content = file.read()
            except OSError:
                continue
            # The name may hold blanks and brackets: fields count from behind it (proc(5), the third is the state).
            fields = content.rpartition(b")")[2].split()
            alive.append(pid)
            # A child that ended keeps its last count, so that the sum never falls.
            self._faults[pid] = int(fields[7]), int(fields[9])
            threads += int(fields[17])
            resident += int(fields[21])
        if not alive:
            return {}, []
        values = {
            "process_rss_bytes": float(resident * self._page_bytes),
            "minor_faults": float(sum(minor for minor, _ in self._faults.values())),
            "major_faults": float(sum(major for _, major in self._faults.values())),
            "process_threads": float(threads),
        }
        if time.monotonic() >= self._next_pss:
            began = time.thread_time()
            pss = self._pss_bytes(alive)
            cost = time.thread_time() - began
            self._next_pss = time.monotonic() + max(_PSS_SECONDS, cost / _PSS_SHARE)
            if pss is not None:
                values["process_pss_bytes"] = pss
        return values, []

    def close(self) -> None:
        """Nothing stays open."""

    def _pss_bytes(self, pids: Sequence[int]) -> float | None:
        total = 0
        for pid in pids:
            try:
                for line in (self._proc / str(pid) / "smaps_rollup").read_bytes().splitlines():
                    if line.startswith(b"Pss:"):
                        total += int(line.split()[1]) * 1024
            except OSError:
                return None  # a sum without one of them would be wrong
        return float(total)
