"""The worker: one process, one plugin, one engine, driven by messages and timed by one clock.

Started by `enginecmp.process` as `python -P -m enginecmp.worker FD PROGRESS_FD GUARD_FD MODULE`, in a session of
its own, with the engine's environment variables already set. It ends when the host closes the socket; if the
host is killed, a guardian process kills the whole process group, engine's children included.

A request is measured here and nowhere else: the clock is read before `cmp_prefill`, after it, and at every
token that `cmp_decode` yields. Stamps are kept and sent after the request is over.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from enginecmp import clock
from enginecmp.errors import CmpError, LaunchError
from enginecmp.generate import generate
from enginecmp.guardian import guard, prefer_for_oom
from enginecmp.operations import Operations, profile
from enginecmp.plugins import load_object, manager_with
from enginecmp.protocol import PHASES, Channel, Progress, describe
from enginecmp.telemetry.contention import ContentionSensor, between, without_engine
from enginecmp.types import LoadOptions, ModelInfo

_PHASE = {name: number for number, name in enumerate(PHASES)}


class Worker:
    """Answers the host's messages with one engine.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        progress: shared memory that says where this worker is.
    """

    def __init__(self, hook: Any, progress: Progress) -> None:
        self._hook = hook
        self._progress = progress
        self._session: Any = None
        self._sensor: ContentionSensor | None = None
        self._operations = Operations(hook, progress)
        self.operations: dict[str, Callable[[dict[str, Any]], Any]] = {
            "probe": self.probe,
            "load": self.load,
            "request": self.request,
            "score": self.score,
            "prepare_operation": lambda message: self._operations.prepare(self._session, message),
            "operation": self._operations.run,
            "profile": lambda message: profile(hook, self._session, progress, message),
            "serve": self.serve,
            "batch": self.batch,
            "unload": self.unload,
        }

    def probe(self, message: dict[str, Any]) -> Any:
        """Ask the engine whether it can run here."""
        self._progress.set(_PHASE["probe"])
        found = self._hook.cmp_probe(options=msgspec.convert(message["options"], LoadOptions))
        return msgspec.to_builtins(found) if found is not None else {"ok": True, "reason": "", "mend": ""}

    def load(self, message: dict[str, Any]) -> dict[str, Any]:
        """Load the model and time it."""
        model = msgspec.convert(message["model"], ModelInfo)
        options = msgspec.convert(message["options"], LoadOptions)
        self._progress.set(_PHASE["load"])
        self._sensor = ContentionSensor()
        before = self._sensor.read()
        start_ns = clock.now_ns()
        self._session = self._hook.cmp_load(model=model, options=options)
        end_ns = clock.now_ns()
        disturbed = between(before, self._sensor.read())
        if self._session is None:
            msg = "cmp_load returned nothing, expected a session"
            raise CmpError(msg)
        self._progress.set(_PHASE["idle"])
        # What loading left behind is permanent: keep the collector from walking it between requests.
        gc.collect()
        gc.freeze()
        return {"start_ns": start_ns, "end_ns": end_ns, "metrics": disturbed | self._metrics()}

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        """Run one request and time it: the measured window is between the two sensor readings."""
        hook, session, progress, sensor = self._hook, self._session, self._progress, self._sensor
        assert sensor is not None
        token_ids: list[int] = message["token_ids"]
        n_tokens: int = message["output_tokens"]
        prefill, decode = _PHASE["prefill"], _PHASE["decode"]

        progress.set(_PHASE["prepare"])
        hook.cmp_reset(session=session)
        hook.cmp_prepare(session=session, token_ids=token_ids, output_tokens=n_tokens)
        now_ns = clock.now_ns
        token_ns: list[int] = []
        ids: list[int] = []
        total: int | None = None
        error: dict[str, str] | None = None

        def mark(token: int) -> None:
            token_ns.append(now_ns())
            ids.append(token)
            progress.set(decode, len(token_ns))

        gc.disable()
        before = sensor.read()
        progress.set(prefill)
        start_ns = now_ns()
        try:
            total = generate(hook, session, token_ids, n_tokens, mark)
        except BaseException as raised:  # a Rust panic arrives as a BaseException
            error = describe(raised)
        end_ns = now_ns()
        after = sensor.read()
        gc.enable()

        where = PHASES[decode] if token_ns else PHASES[prefill]
        progress.set(_PHASE["metrics"], len(token_ns))
        metrics = between(before, after)
        if error is None:
            metrics = without_engine(metrics | self._metrics())
        progress.set(_PHASE["idle"])
        return {
            "start_ns": start_ns,
            "token_ns": token_ns,
            "end_ns": end_ns,
            "ids": ids,
            "output_tokens": len(token_ns) if total is None else total,
            "metrics": metrics,
            "where": where,
            "error": error,
        }

    def score(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return teacher-forced logits as raw float32 bytes."""
        self._progress.set(_PHASE["score"])
        self._hook.cmp_reset(session=self._session)
        logits = self._hook.cmp_score(session=self._session, token_ids=message["token_ids"])
        self._progress.set(_PHASE["idle"])
        if logits is None:
            return {"shape": None, "data": b""}
        import numpy as np

        rows = np.ascontiguousarray(logits, dtype=np.float32)
        return {"shape": list(rows.shape), "data": rows.data.cast("B")}

    def serve(self, message: dict[str, Any]) -> dict[str, Any]:
        """Serve requests as the load generator sends them."""
        from enginecmp.serve import serve

        assert self._sensor is not None
        answer = serve(self._hook, self._session, self._progress, self._sensor, message)
        self._progress.set(_PHASE["idle"])
        return answer

    def batch(self, message: dict[str, Any]) -> Any:
        """Run several requests through the engine's own batching; None where it has none."""
        from enginecmp.serve import batch

        self._progress.set(_PHASE["decode"])
        ids = batch(self._hook, self._session, message)
        self._progress.set(_PHASE["idle"])
        return ids

    def unload(self, message: dict[str, Any]) -> bool:
        """Free the engine."""
        self._progress.set(_PHASE["unload"])
        if self._session is not None:
            self._hook.cmp_unload(session=self._session)
            self._session = None
        return True

    def _metrics(self) -> dict[str, float]:
        found = self._hook.cmp_metrics(session=self._session)
        return {str(name): float(value) for name, value in (found or {}).items()}


def main(arguments: list[str]) -> int:
    """Serve one host until it closes the socket."""
    fd, progress_fd, guard_fd = (int(argument) for argument in arguments[:3])
    guard(guard_fd)
    channel = Channel(socket.socket(fileno=fd))
    progress = Progress(progress_fd)
    prefer_for_oom()
    try:
        worker = Worker(manager_with(load_object(arguments[3])).hook, progress)
    except BaseException as error:  # whatever a plugin raises on import
        channel.send({"error": describe(error)})
        return 1
    channel.send({"ok": os.getpid()})
    while (message := channel.receive()) is not None:
        try:
            if "files" in message:
                message["files"] = channel.receive_files(message["files"])
            channel.send({"ok": worker.operations[message["op"]](message)})
        except LaunchError:
            return 1
        except BaseException as error:  # a Rust panic arrives as a BaseException
            channel.send({"error": describe(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
