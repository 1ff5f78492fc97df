"""The worker process of one launch: its command line, its environment, and what connects it with the host."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from enginecmp.errors import CannotWrite
from enginecmp.plugins.plugin import Plugin
from enginecmp.types import LoadOptions
from enginecmp.wire.guarded import GuardedProcess
from enginecmp.wire.protocol import channel_pair, shared_progress


class WorkerProcess(GuardedProcess):
    """A worker below its guardian, and this side of what connects it with the host.

    Args:
        plugin: which plugin the worker imports.
        log: file for everything that the engine prints; opened for appending.
        options: threads, device and the rest, for the environment.
        environment: further variables; they win over the plugin's.

    Attributes:
        channel: where operations go and answers come from.
        progress: says in which phase the worker is, without waking it.

    Raises:
        LaunchError: there is no such interpreter or executable.
        CannotWrite: the log cannot be written.
    """

    def __init__(self, plugin: Plugin, log: Path, options: LoadOptions, environment: Mapping[str, str]) -> None:
        self._oom_kills = _oom_kills()
        self.channel, theirs = channel_pair()
        progress_fd, self.progress = shared_progress()
        try:
            super().__init__(
                _command(plugin, theirs, progress_fd),
                log,
                (theirs, progress_fd),
                {**_inherited(), **engine_environment(plugin, options), **environment},
            )
        except BaseException as error:
            self.channel.close()
            self.progress.close()
            if not isinstance(error, OSError):
                raise
            msg = f"{log}: cannot be written: {error.strerror or error}"
            raise CannotWrite(msg) from error
        finally:
            os.close(theirs)
            os.close(progress_fd)

    def kill(self) -> None:
        """Kill the worker and everything that it started, and close what connects it; safe to call twice."""
        if not self.killed:
            self.channel.close()
            self.progress.close()
        super().kill()

    def how_it_ended(self) -> str:
        """Return how a worker ended that closed its side by itself, as the predicate of a sentence."""
        if self.returncode == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return f"ran out of memory (killed by the kernel at {(self.peak_rss_bytes or 0) / 2**30:.1f} GiB)"
        if self.returncode == -signal.SIGILL:
            return "was killed by SIGILL (an instruction this processor refuses: build the engine anew on this machine)"
        return super().how_it_ended()


def _command(plugin: Plugin, channel: int, progress: int) -> list[str]:
    """Return the command line of a worker, with the file descriptors that it inherits."""
    if plugin.command:
        return [*plugin.command, str(channel), str(progress)]
    python = plugin.python or sys.executable
    return [python, "-P", "-m", "enginecmp.worker", str(channel), str(progress), plugin.module]


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
