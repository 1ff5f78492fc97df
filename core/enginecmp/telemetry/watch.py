"""The host's side of the sensors: starts their process, says what is measured, and asks what was the matter."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from enginecmp.errors import LaunchError
from enginecmp.protocol import Channel
from enginecmp.telemetry.conditions import ConditionPages

TELEMETRY = "telemetry.jsonl"
_START_SECONDS = 15.0
_GRACE_SECONDS = 2.0


class Telemetry:
    """The sensors of one run; use as a context manager.

    Whatever happens to their process, nothing here raises: it is told once, and telemetry ends.

    Args:
        folder: of the run; telemetry.jsonl and logs/sensors.log are appended to. None switches sensors off.
        say: told what is wrong, one line at a time, only while nothing is measured.
        modules: plugins that bring sensors.
    """

    def __init__(self, folder: Path | None, say: Callable[[str], None], modules: Sequence[str] = ()) -> None:
        self._folder = folder
        self._say = say
        self._modules = list(modules)
        self._facts: dict[str, dict[str, Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pages: ConditionPages | None = None

    def __enter__(self) -> Self:
        """Start the sensors' process and return at once."""
        if self._folder is None:
            self._facts = {"sensors": {"absent": "switched off with --no-sensors"}}
            return self
        try:
            self._start(self._folder)
        except OSError as error:
            self._end(f"they cannot be started: {error.strerror or error}")
        return self

    def _start(self, folder: Path) -> None:
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        pages_fd, self._pages = ConditionPages.create()
        guard_read, self._guard = os.pipe()
        passed = (theirs.fileno(), pages_fd, guard_read)
        command = [sys.executable, "-P", "-m", "enginecmp.telemetry.sampler", *map(str, passed)]
        try:
            with open(logs / "sensors.log", "ab") as output:
                self._process = subprocess.Popen(
                    [*command, str(folder / TELEMETRY), *self._modules],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=passed,
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            os.close(self._guard)
            raise
        finally:
            theirs.close()
            os.close(pages_fd)
            os.close(guard_read)
        self._channel = Channel(ours)
        self._socket = ours

    @property
    def pid(self) -> int:
        """Process id of the sensors' process; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return for each sensor {"facts": ...} or {"absent": reason}; waits until all have started or given up."""
        end = time.monotonic() + _START_SECONDS
        while not self._facts and self._channel is not None:
            if time.monotonic() > end:
                self._end(f"they did not start within {_START_SECONDS:g} s")
                break
            self._listen(0.2)
        return self._facts

    def watch(self, launch: str, pid: int) -> None:
        """Say that a launch begins; readings carry its name, and its processes are not foreign.

        Args:
            launch: its name in the samples.
            pid: of its worker.
        """
        self._send({"op": "watch", "launch": launch, "pid": pid})

    def idle(self) -> None:
        """Say that no launch is under way, and pass on what went wrong meanwhile."""
        self._send({"op": "idle"})
        self._listen(0.0)

    def flags(self, start_ns: int, end_ns: int) -> list[str]:
        """Return the conditions that held at some moment of a request, as flags; wakes nobody.

        Args:
            start_ns: of the request, on the clock of the samples.
            end_ns: of the request.
        """
        return [] if self._pages is None else self._pages.overlapping(start_ns, end_ns)

    def __exit__(self, *_: object) -> None:
        """End the sensors' process."""
        self._listen(0.0)
        self._close(_GRACE_SECONDS)
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def _send(self, message: dict[str, Any]) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message)
        except LaunchError:
            self._end(self._how_it_died())

    def _listen(self, timeout_seconds: float) -> None:
        """Take what the sensors' process has to tell; wait for the first of it at most that long."""
        while self._channel is not None and select.select([self._socket], [], [], timeout_seconds)[0]:
            timeout_seconds = 0.0
            try:
                message = self._channel.receive(_GRACE_SECONDS)
            except (LaunchError, TimeoutError) as error:
                self._end(str(error))
                return
            if message is None:
                self._end(self._how_it_died())
                return
            self._facts |= message.get("facts", {})
            for name, reason in message.get("lost", {}).items():
                self._facts[name] = {**self._facts.get(name, {}), "lost": reason}
                self._say(f"sensor lost: {reason}; the run goes on")
            if "trouble" in message:
                self._say(f"sensors: {message['trouble']}; the run goes on")

    def _how_it_died(self) -> str:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        code = self._process.returncode
        if code is None:
            return "their process closed its channel"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"their process {how}"

    def _end(self, reason: str) -> None:
        """Go on without sensors, and say so once."""
        self._close(0.0)
        self._facts["sensors"] = {"lost" if self._facts else "absent": reason}
        self._say(f"sensors: {reason}; the run goes on without telemetry; log: {self._folder}/logs/sensors.log")

    def _close(self, grace_seconds: float) -> None:
        if self._channel is None:
            return
        self._channel.close()
        self._channel = None
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._guard)
