"""The host's side of the sensors: starts their process, says what is measured, and asks what was the matter."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import psutil

from enginecmp.errors import LaunchError
from enginecmp.format.files import TELEMETRY
from enginecmp.telemetry.conditions import ConditionPages
from enginecmp.wire.guarded import GuardedProcess
from enginecmp.wire.protocol import Channel, channel_pair

_START_SECONDS = 15.0
_GRACE_SECONDS = 2.0
_MOST_BYTES = 8 << 20
"""Of what the sensors' process tells: 32 sensors a plugin, each with 64 KiB of facts."""


class _Told(msgspec.Struct):
    """What the sensors' process tells: plugins' code runs there too, so its shape is checked."""

    facts: dict[str, dict[str, Any]] = {}
    lost: dict[str, str] = {}
    trouble: str = ""


class Telemetry:
    """The sensors of one run; use as a context manager.

    Whatever happens to their process, nothing here raises: it is told, and telemetry ends. Where plugins brought
    sensors, ours go on alone first, in a new process.

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
        self._process: GuardedProcess | None = None
        self._channel: Channel | None = None
        self._pages: ConditionPages | None = None
        self._starting = False
        self._ended = ""

    def __enter__(self) -> Self:
        """Start the sensors' process and return at once."""
        if self._folder is None:
            self._facts = {"sensors": {"absent": "switched off with --no-sensors"}}
            return self
        try:
            self._start(self._folder)
        except (OSError, LaunchError) as error:
            self._end(f"they cannot be started: {getattr(error, 'strerror', None) or error}")
        return self

    def _start(self, folder: Path) -> None:
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        channel, theirs = channel_pair()
        if self._pages is not None:
            self._pages.close()
        pages_fd, self._pages = ConditionPages.create()
        command = [sys.executable, "-P", "-m", "enginecmp.telemetry.sampler", str(theirs), str(pages_fd)]
        command += [str(folder / TELEMETRY), *self._modules]
        try:
            self._process = GuardedProcess(command, logs / "sensors.log", (theirs, pages_fd), os.environ)
        except BaseException:
            channel.close()
            raise
        finally:
            os.close(theirs)
            os.close(pages_fd)
        self._channel = channel
        self._starting = True

    @property
    def pid(self) -> int:
        """Process id of the sensors' process; 0 where there is none."""
        return 0 if self._process is None else self._process.pid

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return for each sensor {"facts": ...} or {"absent": reason}; waits until all have started or given up."""
        self._settle()
        return self._facts

    def _settle(self) -> None:
        """Wait until all sensors have started or given up; ours go on alone where the process ended."""
        end = time.monotonic() + _START_SECONDS
        while self._starting and self._channel is not None:
            if time.monotonic() > end:
                self._end(f"they did not start within {_START_SECONDS:g} s")
            self._listen(0.2)
        if self._ended:
            self._go_on()
            self._settle()

    def _go_on(self) -> None:
        """Start anew without the sensors of plugins, one of which may have ended their process."""
        assert self._folder is not None
        reason, self._ended = self._ended, ""
        plugins, self._modules = ", ".join(self._modules), []
        for name, found in self._facts.items():
            self._facts[name] = {**found, "lost": reason} if "facts" in found else found
        without = f"without those of {plugins}"
        self._facts["plugins"] = {"lost" if self._facts else "absent": f"{reason}; our sensors went on {without}"}
        self._say(f"sensors: {reason}; ours go on {without}; log: {self._folder}/logs/sensors.log")
        try:
            self._start(self._folder)
        except (OSError, LaunchError) as error:
            self._end(f"they cannot be started: {getattr(error, 'strerror', None) or error}")

    def watch(self, launch: str, pid: int) -> None:
        """Say that a launch begins; readings carry its name, and its processes are not foreign.

        Args:
            launch: its name in the samples.
            pid: of its worker.
        """
        self._send({"op": "watch", "launch": launch, "pid": pid})

    def idle(self) -> None:
        """Say that no launch is under way, and pass on what went wrong meanwhile; nothing is measured now."""
        self._send({"op": "idle"})
        self._listen(0.0)
        if self._channel is not None and _stopped(self.pid):
            self._end("their process was stopped (SIGSTOP)")
        self._settle()

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
        if self._ended:
            self._modules = []
            self._end(self._ended)
        self._close(_GRACE_SECONDS)
        if self._pages is not None:
            self._pages.close()
            self._pages = None

    def _send(self, message: dict[str, Any]) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message, _GRACE_SECONDS)
        except TimeoutError:
            self._end("their process does not listen any more")
        except LaunchError:
            self._end(self._how_it_died())

    def _listen(self, timeout_seconds: float) -> None:
        """Take what the sensors' process has to tell; wait for the first of it at most that long."""
        while self._channel is not None and select.select([self._channel], [], [], timeout_seconds)[0]:
            timeout_seconds = 0.0
            try:
                message = self._channel.receive(_GRACE_SECONDS, most_bytes=_MOST_BYTES)
            except (LaunchError, TimeoutError) as error:
                self._end(str(error))
                return
            if message is None:
                self._end(self._how_it_died())
                return
            try:
                told = msgspec.convert(message, _Told)
            except msgspec.ValidationError as error:
                self._end(f"broke the protocol: {error}")
                return
            if told.facts:
                self._starting = False
            self._facts |= told.facts
            for name, reason in told.lost.items():
                self._facts[name] = {**self._facts.get(name, {}), "lost": reason}
                self._say(f"sensor lost: {reason}; the run goes on")
            if told.trouble:
                self._say(f"sensors: {told.trouble}; the run goes on")

    def _how_it_died(self) -> str:
        assert self._process is not None
        self._process.reap(_GRACE_SECONDS)
        return f"their process {self._process.how_it_ended()}"

    def _end(self, reason: str) -> None:
        """Go on without sensors, and say so once; where plugins brought some, ours are to start anew first."""
        self._close(0.0)
        self._starting = False
        if self._modules:
            self._ended = reason
            return
        self._facts["sensors"] = {"lost" if self._facts else "absent": reason}
        self._say(f"sensors: {reason}; the run goes on without telemetry; log: {self._folder}/logs/sensors.log")

    def _close(self, grace_seconds: float) -> None:
        if self._channel is None:
            return
        self._channel.close()
        self._channel = None
        assert self._process is not None
        self._process.reap(grace_seconds)
        self._process.kill()


def _stopped(pid: int) -> bool:
    """Say whether a process stands still by a signal; False where it cannot be told."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False
