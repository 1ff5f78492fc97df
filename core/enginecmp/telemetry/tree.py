"""The processes of a launch: its worker and everything that the worker started."""

from __future__ import annotations

import os
import time
from pathlib import Path

_FRESH_SECONDS = 1.0


class ProcessTree:
    """The living processes below one, looked up anew at most once a second.

    Args:
        pid: of the topmost process.
        proc: where /proc is.
    """

    def __init__(self, pid: int, proc: Path = Path("/proc")) -> None:
        self._pid = pid
        self._proc = proc
        self._found: tuple[int, ...] = ()
        self._fresh_until = 0.0

    def pids(self) -> tuple[int, ...]:
        """Return the process itself and all below it; empty when it is gone."""
        now = time.monotonic()
        if now >= self._fresh_until:
            self._fresh_until = now + _FRESH_SECONDS
            self._found = self._look()
        return self._found

    def _look(self) -> tuple[int, ...]:
        found = [self._pid]
        for pid in found:  # grows while it is walked
            tasks = f"{self._proc}/{pid}/task"
            try:
                threads = os.listdir(tasks)
            except OSError:
                if pid == self._pid:
                    return ()
                continue
            # One file a thread: a child belongs to the thread that forked it.
            for thread in threads:
                try:
                    with open(f"{tasks}/{thread}/children", "rb", buffering=0) as file:
                        found += map(int, file.read().split())
                except OSError:
                    continue  # the thread ended meanwhile
        return tuple(found)
