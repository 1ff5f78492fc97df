"""One launch: what is said to a fresh worker process, within which deadlines, and what becomes of it.

The host talks to an engine only through `Launch.call`, which sleeps in `recv` until the answer or the deadline.
Whatever happens in the worker becomes one `LaunchFailure` here: a status (`error`, `timeout`, `crash`), the
phase it happened in, and one line that says what and where to look. What an answer may be is in
`enginecmp.wire.answers`: no other leaves this module.
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
from enginecmp.errors import LaunchError, ModelError, ResultsError
from enginecmp.format.flags import Flag
from enginecmp.format.phases import Phase
from enginecmp.format.records import Status
from enginecmp.format.streams import open_regular
from enginecmp.format.text import plain
from enginecmp.launch.model_file import file_for
from enginecmp.launch.process import WorkerProcess
from enginecmp.plugins.plugin import Plugin
from enginecmp.telemetry.contention import between
from enginecmp.telemetry.memory import MemorySensor
from enginecmp.telemetry.outside import OutsideSensor
from enginecmp.types import GREEDY, Decoding, LoadOptions, ModelInfo, Probe
from enginecmp.wire.answers import (
    ANSWERS,
    TEXT_CHARACTERS,
    Answered,
    last_stamp,
    most_bytes,
    require,
    require_own_metrics,
)
from enginecmp.wire.deadlines import Deadlines
from enginecmp.wire.protocol import WrongMessage

_STARTUP_SECONDS = 30.0
_VERSION_CHARACTERS = 200
_UNLOAD_SECONDS = 5.0


class LaunchFailure(LaunchError):
    """An engine's launch went wrong.

    Attributes:
        status: error (the engine said so), timeout or crash.
        phase: what the worker was doing.
        tokens: output tokens of the request that was under way.
        fatal: the launch is over.
        kind: name of the exception class in the worker; empty for timeouts and crashes.
        detail: the worker's traceback; empty where there is none.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Status,
        phase: Phase,
        tokens: int = 0,
        kind: str = "",
        detail: str = "",
        fatal: bool = False,
    ) -> None:
        super().__init__(message)
        self.status: Status = status
        self.phase = phase
        self.tokens = tokens
        self.fatal = fatal or status in ("timeout", "crash")
        self.kind = kind
        self.detail = detail


def loadable(label: str, plugin: Plugin, model: ModelInfo, extra: Mapping[str, str]) -> ModelInfo:
    """Return the model as an engine loads it, see `file_for`.

    Raises:
        LaunchFailure: it cannot be had in the form that this engine reads; the others are not touched.
    """
    try:
        return file_for(plugin, model, extra=extra)
    except ModelError as error:
        msg = f"{label}: {error}"
        raise LaunchFailure(msg, status="error", phase=Phase.LOAD, kind=type(error).__name__) from error


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
        self._remote = plugin.info is not None and plugin.info.remote
        self._vocabulary = 0
        self._last_ns = 0
        self._asked: Mapping[str, Any] = {}
        try:
            self._process = WorkerProcess(plugin, log, options, environment or {})
        except LaunchError as error:
            msg = f"{label}: {error}"
            raise LaunchFailure(msg, status="crash", phase=Phase.START) from error
        self._channel = self._process.channel
        self._progress = self._process.progress
        self.pid = self._process.pid
        self.launched_ns = self._process.started_ns
        self.memory = MemorySensor(self.pid)
        self._outside = OutsideSensor(self.pid) if plugin.command else None

    @property
    def returncode(self) -> int | None:
        """Exit code of the worker; None while it lives."""
        return self._process.returncode

    @property
    def peak_rss_bytes(self) -> int | None:
        """The most that the worker process held; None while it lives. Of a server it is the client's."""
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
            operation: one of `enginecmp.worker.worker.Worker.operations`.
            deadline_seconds: after that long without an answer the launch is killed.
            **fields: the operation's arguments, msgpack types.

        Returns:
            The answer, of the operation's type in `enginecmp.wire.answers.ANSWERS`.

        Raises:
            LaunchFailure: error, timeout or crash, or an answer that is not what it should be.
        """
        self.begin(operation, deadline_seconds, **fields)
        return self.end(operation, deadline_seconds)

    def begin(self, operation: str, deadline_seconds: float, files: Sequence[int] = (), **fields: Any) -> None:
        """Send one operation, file descriptors behind it, and return at once; `end` gets the answer.

        Raises:
            LaunchFailure: the worker is gone, or does not take it in time.
        """
        self._asked = fields
        more = {"files": len(files)} if files else {}
        try:
            self._channel.send({"op": operation, **more, **fields}, deadline_seconds)
            if files:
                self._channel.send_files(files)
        except TimeoutError:
            raise self.hung(deadline_seconds) from None
        except LaunchError:
            raise self._crash() from None

    def probe(self, deadline_seconds: float) -> Probe:
        """Ask the engine whether it can run here, with the launch's options; its words are safe to show."""
        found: Probe = self.call("probe", deadline_seconds, options=msgspec.to_builtins(self.options))
        return msgspec.structs.replace(
            found,
            reason=plain(found.reason, TEXT_CHARACTERS),
            fix=plain(found.fix, TEXT_CHARACTERS),
            version=plain(found.version, _VERSION_CHARACTERS),
            prove=plain(found.prove, TEXT_CHARACTERS),
        )

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

    def conditions(self, start_ns: int, end_ns: int) -> list[str]:
        """Return the flags of a time in which the worker was stopped, or everything stood still; wakes nobody."""
        return [Flag.STALLED] if self._process.stood_still(start_ns, end_ns) else []

    def progress(self) -> tuple[Phase, int]:
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
        """Load the model; return the worker's stamps and metrics of it, with what it took to start and to hold it.

        An engine that computes elsewhere has a client here, whose start and memory are not the engine's.
        """
        metrics = {}
        if not self._remote:
            metrics["startup_seconds"] = (self.ready_ns - self.launched_ns) / 1e9
            if (empty := self.memory.read().get("rss_bytes")) is not None:
                metrics["empty_rss_bytes"] = empty
        file = msgspec.to_builtins(loadable(self.label, self.plugin, model, self.options.extra))
        answer = self.call("load", deadline_seconds, model=file, options=msgspec.to_builtins(self.options))
        self._vocabulary = model.vocabulary
        self.loaded = {**answer, "metrics": {**metrics, **self.held_bytes(), **answer["metrics"]}}
        if "version" in answer:
            self.loaded["version"] = plain(answer["version"], _VERSION_CHARACTERS)
        return self.loaded

    def held_bytes(self) -> dict[str, float]:
        """Return what the engine's process holds; nothing where that is a client's."""
        return {} if self._remote else self.memory.read()

    def request(
        self, token_ids: tuple[int, ...], output_tokens: int, deadlines: Deadlines, decoding: Decoding = GREEDY
    ) -> Answered:
        """Run one request; return the worker's stamps, ids and metrics.

        The host wakes once, at the prefill deadline, only when a request takes longer than that. A Python worker
        reads what the rest of the machine did by itself; for an executable it is read here, around the request. What
        the process holds is read here too, when the request is over.
        """
        before = self._outside.read() if self._outside else None
        asked: dict[str, Any] = {"token_ids": token_ids, "output_tokens": output_tokens}
        if decoding != GREEDY:
            asked["decoding"] = msgspec.to_builtins(decoding)
        self.begin("request", deadlines.prefill_seconds, **asked)
        answer: Answered = self._answer(deadlines.prefill_seconds, "request", more_seconds=deadlines.decode_seconds)
        if self._outside and before is not None:
            answer["metrics"] = {**between(before, self._outside.read()), **answer["metrics"]}
        answer["metrics"] = {**self.held_bytes(), **answer["metrics"]}
        if answer["error"] is not None:
            answer["error"]["message"] = plain(answer["error"]["message"], TEXT_CHARACTERS)
        return answer

    def _answer(self, deadline_seconds: float, operation: str, more_seconds: float = 0.0) -> Any:
        try:
            message = self._receive(operation, deadline_seconds, more_seconds)
            if message is not None and message.error is msgspec.UNSET:
                return self._held(operation, message.ok)
        except TimeoutError:
            in_decode = self._progress.get()[0] is Phase.DECODE
            raise self.hung(more_seconds if more_seconds and in_decode else deadline_seconds) from None
        except LaunchError as error:
            phase, tokens = self._progress.get()
            self.kill()
            status: Status = "error" if isinstance(error, WrongMessage) else "crash"
            msg = f"{self.label}: {error}, in the answer to {operation}; log: {self.log}"
            raise LaunchFailure(msg, status=status, phase=phase, tokens=tokens, fatal=True) from None
        if message is None:
            raise self._crash()
        phase, tokens = self._progress.get()
        said = message.error
        text = plain(said.message, TEXT_CHARACTERS)
        if not text.startswith(f"{self.label}: "):
            # A plugin names its engine; people know it by the label that they gave.
            text = f"{self.label}: {text.removeprefix(f'{self.plugin.name}: ')}"
        raise LaunchFailure(
            text, status="error", phase=phase, tokens=tokens, kind=plain(said.type, 100), detail=said.traceback
        )

    def _receive(self, operation: str, deadline_seconds: float, more_seconds: float) -> Any:
        kind, most = ANSWERS[operation], most_bytes(operation, self._asked, self._vocabulary)
        try:
            return self._channel.receive(deadline_seconds, kind, most)
        except TimeoutError:
            if more_seconds and self._progress.get()[0] in (Phase.DECODE, Phase.METRICS, Phase.IDLE):
                return self._channel.receive(more_seconds, kind, most)
            raise

    def _held(self, operation: str, answer: Any) -> Any:
        """Return an answer that is what was asked for, and remember when it was over.

        Raises:
            WrongMessage: it is not.
        """
        try:
            if answer is msgspec.UNSET:
                msg = "expected ok or error, got neither"
                raise ValueError(msg)
            require(operation, answer, self._asked, self._vocabulary, self._last_ns)
            if self.plugin.command and isinstance(answer, dict):  # no worker of ours stands between
                require_own_metrics("metrics", answer.get("metrics", {}))
        except ValueError as error:
            msg = f"broke the protocol: {error}"
            raise WrongMessage(msg) from error
        self._last_ns = last_stamp(answer, self._last_ns)
        return answer

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
        with open_regular(log) as file:  # its engine can have put something else there
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except (OSError, ResultsError):
        return ""
    return plain(lines[-1], 160) if lines else ""
