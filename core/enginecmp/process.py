"""The process of one launch: how it is started, how it died, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from enginecmp import clock
from enginecmp.errors import LaunchError, ResultsError
from enginecmp.plugins import Plugin
from enginecmp.protocol import Channel, shared_progress
from enginecmp.types import LoadOptions

_GRACE_SECONDS = 5.0


class WorkerProcess:
    """A worker in a session and a process group of its own, and this side of what connects it with the host.

    Args:
        plugin: which plugin the worker imports.
        log: file for everything that the engine prints; opened for appending.
        options: threads, device and the rest, for the environment.
        environment: further variables; they win over the plugin's.

    Attributes:
        pid: of the process, and of its group.
        channel: where operations go and answers come from.
        progress: says in which phase the worker is, without waking it.
        launched_ns: when the process was started.
        returncode: as `subprocess` counts; None before the process was reaped.
        peak_rss_bytes: the most that it held; None before it was reaped.
        killed: whether `kill` was called.

    Raises:
        LaunchError: there is no such interpreter or executable.
        ResultsError: the log cannot be written.
    """

    def __init__(self, plugin: Plugin, log: Path, options: LoadOptions, environment: Mapping[str, str]) -> None:
        self.returncode: int | None = None
        self.peak_rss_bytes: int | None = None
        self.killed = False
        self._oom_kills = _oom_kills()
        ours, theirs = socket.socketpair()
        progress_fd, self.progress = shared_progress()
        guard_read, self._guard = os.pipe()
        command = _command(plugin, theirs.fileno(), progress_fd, guard_read)
        try:
            with _opened(log) as output:
                self.launched_ns = clock.now_ns()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**_inherited(), **engine_environment(plugin, options), **environment},
                    pass_fds=(theirs.fileno(), progress_fd, guard_read),
                    start_new_session=True,
                )
        except BaseException as error:
            ours.close()
            self.progress.close()
            os.close(self._guard)
            if isinstance(error, OSError) and error.filename == command[0]:
                msg = f"cannot start {command[0]}: {error.strerror}; install the engine again"
                raise LaunchError(msg) from error
            raise
        finally:
            theirs.close()
            os.close(progress_fd)
            os.close(guard_read)
        self.channel = Channel(ours)
        self.pid = self._process.pid

    def reap(self, timeout_seconds: float = _GRACE_SECONDS) -> None:
        """Wait for the end of the process and keep its exit code and peak memory."""
        end = time.monotonic() + timeout_seconds
        while self.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = self._process.returncode = os.waitstatus_to_exitcode(status)
                self.peak_rss_bytes = usage.ru_maxrss * 1024
            elif time.monotonic() > end:
                return
            else:
                time.sleep(0.005)

    def kill(self) -> None:
        """Kill the whole process group, at once, and close what connects it; safe to call twice."""
        if self.killed:
            return
        self.killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.reap()
        self.channel.close()
        os.close(self._guard)
        self.progress.close()

    def how_it_ended(self) -> str:
        """Return how a worker ended that closed its side by itself, as the predicate of a sentence."""
        if self.returncode is None:
            return "closed its channel"
        if self.returncode >= 0:
            return f"exited with code {self.returncode}"
        if -self.returncode == signal.SIGKILL and _oom_kills() > self._oom_kills:
            return f"ran out of memory (killed by the kernel at {(self.peak_rss_bytes or 0) / 2**30:.1f} GiB)"
        return f"was killed by {signal.Signals(-self.returncode).name}"


def _opened(log: Path) -> BinaryIO:
    """Open a log for appending."""
    try:
        return open(log, "ab")
    except OSError as error:
        msg = f"{log}: cannot be written: {error.strerror or error}; mend it, then go on with `cmp run --resume`"
        raise ResultsError(msg) from error


def _command(plugin: Plugin, channel: int, progress: int, guard: int) -> list[str]:
    """Return the command line of a worker, with the file descriptors that it inherits."""
    if plugin.command:
        # An executable is no Python: a guardian module runs first and becomes the command.
        guardian = [sys.executable, "-P", "-m", "enginecmp.guardian", str(guard)]
        return [*guardian, *plugin.command, str(channel), str(progress)]
    python = plugin.python or sys.executable
    return [python, "-P", "-m", "enginecmp.worker", str(channel), str(progress), str(guard), plugin.module]


def _inherited() -> dict[str, str]:
    """Return this process's environment without what would make every launch compile its imports again.

    PYTHONDONTWRITEBYTECODE cost PyTorch 9 of the 11 seconds of its `load_seconds`, and native engines nothing.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def engine_environment(plugin: Plugin, options: LoadOptions) -> dict[str, str]:
    """Return the variables that a plugin wants set before its worker's interpreter starts."""
    assert plugin.info is not None
    wanted = dict(plugin.info.environment)
    if options.numerics == "exact":
        wanted |= plugin.info.exact_environment
    return {name: value.replace("{threads}", str(options.threads)) for name, value in wanted.items()}


def _oom_kills() -> int:
    """Return how many processes this kernel has killed for lack of memory."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
