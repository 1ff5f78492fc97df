"""The worker's part of the micro scenarios: single operations called many times, and seconds per component."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from enginecmp import clock
from enginecmp.errors import CmpError
from enginecmp.protocol import PHASES, Progress
from enginecmp.telemetry.contention import ContentionSensor, between

_PREPARE, _DECODE, _IDLE = PHASES.index("prepare"), PHASES.index("decode"), PHASES.index("idle")
_MOST_CALLS = 1 << 20


class Operations:
    """One prepared operation of the engine at a time.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        progress: shared memory that says where the worker is.
    """

    def __init__(self, hook: Any, progress: Progress) -> None:
        self._hook = hook
        self._progress = progress
        self._call: Callable[[], Any] | None = None
        self._sensor: ContentionSensor | None = None

    def prepare(self, session: Any, message: dict[str, Any]) -> dict[str, int] | None:
        """Get an operation ready and find how many calls of it last long enough for the clock.

        Args:
            session: from `cmp_load`.
            message: `kind`, `parameters`, and `least_ns`, how long the calls between two readings must take.

        Returns:
            `calls`, or None where the engine does not offer the operation.
        """
        self._progress.set(_PREPARE)
        self._sensor = self._sensor or ContentionSensor()
        self._call = None
        if self._hook.cmp_operation.get_hookimpls():
            self._hook.cmp_reset(session=session)
            self._call = self._hook.cmp_operation(
                session=session, kind=message["kind"], parameters=message["parameters"]
            )
        calls = 1
        while self._call is not None and calls < _MOST_CALLS:
            start_ns = clock.now_ns()
            for _ in range(calls):
                self._call()
            if clock.now_ns() - start_ns >= message["least_ns"]:
                break
            calls *= 2
        self._progress.set(_IDLE)
        return None if self._call is None else {"calls": calls}

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call the prepared operation `calls` times and return stamps, metrics and what the last call returned.

        Raises:
            CmpError: nothing was prepared.
        """
        call, sensor = self._call, self._sensor
        if call is None or sensor is None:
            msg = "no operation is prepared; prepare_operation comes first"
            raise CmpError(msg)
        now_ns = clock.now_ns
        calls = range(message["calls"])
        answer: Any = None
        gc.disable()
        before = sensor.read()
        self._progress.set(_DECODE)
        start_ns = now_ns()
        for _ in calls:
            answer = call()
        end_ns = now_ns()
        after = sensor.read()
        gc.enable()
        self._progress.set(_IDLE)
        return {
            "start_ns": start_ns,
            "end_ns": end_ns,
            "result": _plain(answer),
            "metrics": between(before, after),
        }


def profile(hook: Any, session: Any, progress: Progress, message: dict[str, Any]) -> dict[str, Any] | None:
    """Return the engine's seconds per component with stamps around them, or None where it cannot tell.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        session: from `cmp_load`.
        progress: shared memory that says where the worker is.
        message: `token_ids`, and `n_tokens` to decode after them.
    """
    progress.set(_DECODE)
    hook.cmp_reset(session=session)
    start_ns = clock.now_ns()
    found = hook.cmp_profile(session=session, token_ids=message["token_ids"], n_tokens=message["n_tokens"])
    end_ns = clock.now_ns()
    progress.set(_IDLE)
    if found is None:
        return None
    seconds = {str(name): float(value) for name, value in found.items()}
    return {"start_ns": start_ns, "end_ns": end_ns, "seconds": seconds}


def _plain(answer: Any) -> Any:
    """Return an operation's answer as the protocol carries it: arrays as shape and float32 bytes."""
    if isinstance(answer, str | int):
        return answer
    if hasattr(answer, "__array__") and getattr(answer, "ndim", 0) == 2:
        import numpy as np

        rows = np.ascontiguousarray(answer, dtype=np.float32)
        return {"shape": list(rows.shape), "data": rows.data.cast("B")}
    return [int(value) for value in answer]
