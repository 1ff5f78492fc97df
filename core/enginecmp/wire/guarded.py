"""A process below a guardian, seen from the host: how it is started, how it ended, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from enginecmp import clock
from enginecmp.errors import LaunchError
from enginecmp.wire import guardian
from enginecmp.wire.descriptors import clear_of_standard_streams, shared_memory

_START_SECONDS = 30.0
_GRACE_SECONDS = 5.0


class GuardedProcess:
    """A process in a session of its own, below a guardian (`enginecmp.wire.guardian`) that outlives it.

    Args:
        command: the program, by its path, and its arguments.
        log: file for everything that it prints; appended to.
        files: descriptors that it inherits.
        environment: all of its variables.

    Attributes:
        pid: of the process, and of its group.
        started_ns: when it was started.
        returncode: as `subprocess` counts; None before it is known.
        peak_rss_bytes: the most that it held; None before its end is known.
        killed: whether `kill` was called.

    Raises:
        LaunchError: there is no such program, or it cannot be started.
        OSError: the log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, files: Sequence[int], environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.peak_rss_bytes: int | None = None
        self.killed = False
        self._said = b""
        status, self._status = map(clear_of_standard_streams, reversed(os.pipe()))
        guard, self._guard = map(clear_of_standard_streams, os.pipe())
        pauses = shared_memory("cmp-pauses", guardian.Pauses.SIZE)
        self._pauses = guardian.Pauses(pauses)
        ours = [status, guard, pauses]
        try:
            with open(log, "ab", opener=_without_waiting) as output:
                where = [str(log), str(os.fstat(output.fileno()).st_size)]
                program = [sys.executable, "-I", "-S", guardian.__file__]
                try:
                    self._guardian = subprocess.Popen(
                        [*program, *map(str, ours), *where, *command],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        pass_fds=(*ours, *files),
                        start_new_session=True,
                    )
                except (OSError, ValueError) as error:  # ValueError: a NUL in the environment, say
                    msg = f"cannot start {command[0]}: {error}"
                    raise LaunchError(msg) from error
        except BaseException:
            self._close()
            raise
        finally:
            for descriptor in ours:
                os.close(descriptor)
        self.pid, self.started_ns = 0, clock.now_ns()
        try:
            match self._line(_START_SECONDS):
                case [b"started", pid, started_ns]:
                    self.pid, self.started_ns = int(pid), int(started_ns)
                case [b"failed", number]:
                    msg = f"cannot start {command[0]}: {os.strerror(int(number))}; install the engine again"
                    raise LaunchError(msg)
                case _:
                    msg = f"cannot start {command[0]}: its guardian did not within {_START_SECONDS:g} s; log: {log}"
                    raise LaunchError(msg)
        except LaunchError:
            self.kill()
            raise

    def stood_still(self, start_ns: int, end_ns: int) -> bool:
        """Say whether the process, or everything, stood still at some moment between two; wakes nobody."""
        return self._pauses.overlap(start_ns, end_ns, time.perf_counter_ns())

    def reap(self, timeout_seconds: float = _GRACE_SECONDS) -> None:
        """Wait for the end of the process and keep its exit code and peak memory."""
        if self.returncode is None and (line := self._line(timeout_seconds)) and line[0] == b"ended":
            self.returncode = os.waitstatus_to_exitcode(int(line[1]))
            self.peak_rss_bytes = int(line[2]) * 1024

    def kill(self) -> None:
        """Kill the process and everything that it started, at once; safe to call twice."""
        if self.killed:
            return
        self.killed = True
        os.close(self._guard)
        self._guard = -1
        self.reap(_GRACE_SECONDS)
        try:
            self._guardian.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:  # somebody stopped it
            self._guardian.kill()
            self._guardian.wait()
        if self._guardian.returncode != 0 and self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self._close()

    def how_it_ended(self) -> str:
        """Return how it ended by itself, as the predicate of a sentence."""
        if self.returncode is None:
            return "closed its channel"
        if self.returncode >= 0:
            return f"exited with code {self.returncode}"
        try:
            return f"was killed by {signal.Signals(-self.returncode).name}"
        except ValueError:
            return f"was killed by signal {-self.returncode}"

    def _line(self, timeout_seconds: float) -> list[bytes]:
        """Return the guardian's next line in words; none where it ended or said nothing in time."""
        end = time.monotonic() + timeout_seconds
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        while b"\n" not in self._said:
            if not poll.poll(max(0.0, 1000 * (end - time.monotonic()))):
                return []
            if not (more := os.read(self._status, 256)):
                return []
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line.split()

    def _close(self) -> None:
        for descriptor in (self._status, self._guard):
            if descriptor >= 0:
                os.close(descriptor)
        self._status = self._guard = -1
        self._pauses.close()


def _without_waiting(path: str, flags: int) -> int:
    """Open a file for `open`; a FIFO that nobody reads is an error at once."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)
