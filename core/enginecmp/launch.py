"""One launch: what is said to a fresh worker process, within which deadlines, and what becomes of it.

The host talks to an engine only through `Launch.call`, which sleeps in `recv` until the answer or the deadline.
Whatever happens in the worker becomes one `LaunchFailure` here: a status (`error`, `timeout`, `crash`), the
phase it happened in, and one line that says what and where to look.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from enginecmp import clock
from enginecmp.deadlines import Deadlines
from enginecmp.errors import LaunchError
from enginecmp.plugins import Plugin
from enginecmp.process import WorkerProcess
from enginecmp.telemetry.contention import between
from enginecmp.telemetry.memory import MemorySensor
from enginecmp.telemetry.outside import OutsideSensor
from enginecmp.types import LoadOptions, ModelInfo, Status

_STARTUP_SECONDS = 30.0
_UNLOAD_SECONDS = 5.0


class LaunchFailure(LaunchError):
    """An engine's launch went wrong.

    Attributes:
        status: error (the engine said so), timeout or crash.
        phase: where: start, probe, load, prepare, prefill, decode, score, metrics or unload.
        tokens: output tokens of the request that was under way.
        fatal: the worker is gone.
        kind: name of the exception class in the worker; empty for timeouts and crashes.
        detail: the worker's traceback; empty where there is none.
    """

    def __init__(
        self, message: str, *, status: Status, phase: str, tokens: int = 0, kind: str = "", detail: str = ""
    ) -> None:
        super().__init__(message)
        self.status: Status = status
        self.phase = phase
        self.tokens = tokens
        self.fatal = status in ("timeout", "crash")
        self.kind = kind
        self.detail = detail


class Launch:
    """A worker process with one engine; use as a context manager.

    Args:
        label: how messages name the engine.
        plugin: which plugin the worker imports.
        log: file for everything that the engine prints; opened for appending.
        options: threads, device and the rest, for the environment and for `load`.
        environment: further variables; they win over the plugin's.

    Attributes:
        launched_ns: when the process was started.
        ready_ns: when it had imported its plugin; 0 before.
        memory: reads what the process holds.
        loaded: what `load` returned; empty before.
    """

    def __init__(
        self,
        label: str,
        plugin: Plugin,
        *,
        log: Path,
        options: LoadOptions,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.label = label
        self.plugin = plugin
        self.log = log
        self.options = options
        self.ready_ns = 0
        self.loaded: dict[str, Any] = {}
        try:
            self._process = WorkerProcess(plugin, log, options, environment or {})
        except LaunchError as error:
            msg = f"{label}: {error}"
            raise LaunchFailure(msg, status="crash", phase="start") from error
        self._channel = self._process.channel
        self._progress = self._process.progress
        self.pid = self._process.pid
        self.launched_ns = self._process.launched_ns
        self.memory = MemorySensor(self.pid)
        self._outside = OutsideSensor(self.pid) if plugin.command else None

    @property
    def returncode(self) -> int | None:
        """Exit code of the worker; None while it lives."""
        return self._process.returncode

    @property
    def peak_rss_bytes(self) -> int | None:
        """The most that the worker held; None while it lives."""
        return self._process.peak_rss_bytes

    def __enter__(self) -> Self:
        """Wait until the worker has imported its plugin.

        Raises:
            LaunchFailure: it did not.
        """
        try:
            self._answer(_STARTUP_SECONDS, "start")
        except BaseException:
            self.kill()
            raise
        self.ready_ns = clock.now_ns()
        return self

    def __exit__(self, *_: object) -> None:
        """Unload if the worker still answers, then end the whole process group."""
        self.close()

    def call(self, operation: str, deadline_seconds: float, **fields: Any) -> Any:
        """Send one operation and sleep until its answer.

        Args:
            operation: one of `enginecmp.worker.Worker.operations`.
            deadline_seconds: after that long without an answer the process group is killed.
            **fields: the operation's arguments, msgpack types.

        Raises:
            LaunchFailure: error, timeout or crash.
        """
        self.begin(operation, **fields)
        return self.end(operation, deadline_seconds)

    def begin(self, operation: str, files: Sequence[int] = (), **fields: Any) -> None:
        """Send one operation, file descriptors behind it, and return at once; `end` gets the answer.

        Raises:
            LaunchFailure: the worker is gone.
        """
        try:
            if files:
                self._channel.send({"op": operation, "files": len(files), **fields})
                self._channel.send_files(files)
            else:
                self._channel.send({"op": operation, **fields})
        except LaunchError:
            raise self._crash() from None

    def answered(self, seconds: float, others: Sequence[int] = ()) -> bool:
        """Sleep until the worker has answered, one of `others` can be read, or the time is over; say whether it has."""
        waiting = select.poll()
        for descriptor in (self._channel.fileno(), *others):
            waiting.register(descriptor, select.POLLIN)
        return any(descriptor == self._channel.fileno() for descriptor, _ in waiting.poll(1000 * seconds))

    def end(self, operation: str, deadline_seconds: float) -> Any:
        """Return the answer to an operation.

        Raises:
            LaunchFailure: error, timeout or crash.
        """
        return self._answer(deadline_seconds, operation)

    def progress(self) -> tuple[str, int]:
        """Return (phase, tokens so far) without waking the worker."""
        return self._progress.get()

    def hung(self, limit_seconds: float) -> LaunchFailure:
        """Kill a worker that was silent for too long and return what to say."""
        phase, tokens = self._progress.get()
        self.kill()
        at = f" after {tokens} tokens" if tokens else ""
        msg = f"{self.label}: hung in {phase}{at}: no answer within {limit_seconds:g} s; log: {self.log}"
        return LaunchFailure(msg, status="timeout", phase=phase, tokens=tokens)

    def load(self, model: ModelInfo, deadline_seconds: float) -> dict[str, Any]:
        """Load the model; return the worker's stamps and metrics of it, with what it took to start and to hold it."""
        metrics = {"startup_seconds": (self.ready_ns - self.launched_ns) / 1e9}
        if (empty := self.memory.read().get("rss_bytes")) is not None:
            metrics["empty_rss_bytes"] = empty
        answer = self.call(
            "load", deadline_seconds, model=msgspec.to_builtins(model), options=msgspec.to_builtins(self.options)
        )
        self.loaded = {**answer, "metrics": {**metrics, **self.memory.read(), **answer["metrics"]}}
        return self.loaded

    def request(self, token_ids: tuple[int, ...], output_tokens: int, deadlines: Deadlines) -> dict[str, Any]:
        """Run one request; return the worker's stamps, ids and metrics.

        The host wakes once, at the prefill deadline, only when a request takes longer than that. A Python worker
        reads what the rest of the machine did by itself; for an executable it is read here, around the request. What
        the process holds is read here too, when the request is over.
        """
        before = self._outside.read() if self._outside else None
        try:
            self._channel.send({"op": "request", "token_ids": token_ids, "output_tokens": output_tokens})
        except LaunchError:
            raise self._crash() from None
        answer = dict(self._answer(deadlines.prefill_seconds, "request", more_seconds=deadlines.decode_seconds))
        if self._outside and before is not None:
            answer["metrics"] = {**between(before, self._outside.read()), **answer["metrics"]}
        answer["metrics"] = {**self.memory.read(), **answer["metrics"]}
        return answer

    def _answer(self, deadline_seconds: float, operation: str, more_seconds: float = 0.0) -> Any:
        try:
            message = self._receive(deadline_seconds, more_seconds)
        except TimeoutError:
            in_decode = self._progress.get()[0] == "decode"
            raise self.hung(more_seconds if more_seconds and in_decode else deadline_seconds) from None
        except LaunchError as error:
            phase, tokens = self._progress.get()
            self.kill()
            msg = f"{self.label}: {error}; log: {self.log}"
            raise LaunchFailure(msg, status="crash", phase=phase, tokens=tokens) from None
        if message is None:
            raise self._crash()
        if "error" in message:
            phase, tokens = self._progress.get()
            said = message["error"]
            text = said["message"]
            if not text.startswith(f"{self.label}: "):
                # A plugin names its engine; people know it by the label that they gave.
                text = f"{self.label}: {text.removeprefix(f'{self.plugin.name}: ')}"
            raise LaunchFailure(
                text,
                status="error",
                phase=phase,
                tokens=tokens,
                kind=said["type"],
                detail=said["traceback"],
            )
        return message["ok"]

    def _receive(self, deadline_seconds: float, more_seconds: float) -> dict[str, Any] | None:
        try:
            return self._channel.receive(deadline_seconds)
        except TimeoutError:
            if more_seconds and self._progress.get()[0] in ("decode", "metrics", "idle"):
                return self._channel.receive(more_seconds)
            raise

    def _crash(self) -> LaunchFailure:
        """Reap a worker that closed its end, and say how it died."""
        phase, tokens = self._progress.get()
        self._process.reap()
        how = self._process.how_it_ended()
        self.kill()
        at = f" after {tokens} tokens" if tokens else ""
        last = last_line(self.log)
        said = f"; it said: {last}" if last else ""
        msg = f"{self.label}: {how} in {phase}{at}{said}; log: {self.log}"
        return LaunchFailure(msg, status="crash", phase=phase, tokens=tokens)

    def close(self) -> None:
        """Unload if possible, then make sure that nothing of the launch is left."""
        if not self._process.killed and self.returncode is None:
            with contextlib.suppress(LaunchError):
                self.call("unload", _UNLOAD_SECONDS)
            self._channel.close()
            self._process.reap()
        self.kill()

    def kill(self) -> None:
        """Kill the whole process group, at once; safe to call twice."""
        self._process.kill()
        self.memory.close()


def last_line(log: Path) -> str:
    """Return the last non-empty line of a log, shortened; empty where there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:160] if lines else ""
