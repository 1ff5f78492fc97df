"""The worker's part of the micro scenarios: single operations called many times, and seconds per component."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

from enginecmp import clock
from enginecmp.errors import CmpError, EngineError
from enginecmp.format.phases import Phase
from enginecmp.plugins.manager import load_object
from enginecmp.telemetry.contention import ContentionSensor, between, without_engine
from enginecmp.wire.protocol import Progress
from enginecmp.worker.results import engine_metrics, float32_matrix, numbers

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
        self._yields = False
        self._sensor: ContentionSensor | None = None

    def prepare(self, session: Any, message: dict[str, Any]) -> dict[str, int] | None:
        """Get an operation ready and find how many calls of it last long enough for the clock.

        Args:
            session: from `cmp_load`.
            message: `kind`, `parameters`, and `least_ns`, how long the calls between two readings must take; `driver`
                where a plugin's function makes the operation of the engine's hooks.

        Returns:
            `calls`, or None where the engine does not offer the operation.
        """
        self._progress.set(Phase.PREPARE)
        self._sensor = self._sensor or ContentionSensor()
        self._call, self._yields = None, False
        if driver := message.get("driver", ""):
            self._hook.cmp_reset(session=session)
            make: Any = load_object(driver)
            self._call = make(self._hook, session, message["parameters"])
        elif self._hook.cmp_operation.get_hookimpls():
            self._hook.cmp_reset(session=session)
            self._call = self._hook.cmp_operation(
                session=session, kind=message["kind"], parameters=message["parameters"]
            )
        calls = 1
        while self._call is not None and calls < _MOST_CALLS:
            start_ns = clock.now_ns()
            for _ in range(calls):
                answer = self._call()
            if isinstance(answer, Iterator):
                # Its calls are told apart by what it yields: one at a time, this one to warm up.
                self._yields = True
                for _ in answer:
                    pass
                break
            if clock.now_ns() - start_ns >= message["least_ns"]:
                break
            calls *= 2
        self._progress.set(Phase.IDLE)
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
        marks_ns: list[int] = []
        yielded: list[Any] = []
        gc.disable()
        before = sensor.read()
        self._progress.set(Phase.DECODE)
        start_ns = now_ns()
        for _ in calls:
            answer = call()
        if self._yields:
            for each in answer:
                marks_ns.append(now_ns())
                yielded.append(each)
            answer = yielded
        end_ns = now_ns()
        after = sensor.read()
        gc.enable()
        self._progress.set(Phase.IDLE)
        own = engine_metrics(getattr(call, "metrics", None))
        return {
            "start_ns": start_ns,
            "end_ns": end_ns,
            "result": _plain(answer),
            "metrics": without_engine(own | between(before, after)),
            **({"marks_ns": marks_ns} if self._yields else {}),
        }


def profile(
    hook: Any, session: Any, progress: Progress, sensor: ContentionSensor, message: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the engine's seconds per component with stamps around them, or None where it cannot tell.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        session: from `cmp_load`.
        progress: shared memory that says where the worker is.
        sensor: tells what the rest of the machine did meanwhile.
        message: `token_ids`, and `n_tokens` to decode after them.
    """
    progress.set(Phase.DECODE)
    hook.cmp_reset(session=session)
    before = sensor.read()
    start_ns = clock.now_ns()
    found = hook.cmp_profile(session=session, token_ids=message["token_ids"], n_tokens=message["n_tokens"])
    end_ns = clock.now_ns()
    metrics = between(before, sensor.read())
    progress.set(Phase.IDLE)
    if found is None:
        return None
    return {"start_ns": start_ns, "end_ns": end_ns, "seconds": numbers("cmp_profile", found), "metrics": metrics}


def _plain(answer: Any) -> Any:
    """Return an operation's answer as the protocol carries it: arrays as shape and float32 bytes."""
    if isinstance(answer, str | int):
        return answer
    if getattr(answer, "ndim", 0) == 2 and hasattr(answer, "__array__"):
        # Only NumPy's types have a kind; whatever else converts itself holds numbers that may be fractions.
        if getattr(getattr(answer, "dtype", None), "kind", "f") not in "iu":
            return float32_matrix("cmp_operation", answer)
        answer = answer.tolist()
    try:
        return [value if isinstance(value, str) else _whole(value) for value in answer]
    except (TypeError, ValueError) as error:
        msg = f"cmp_operation's call returned a {type(answer).__name__}, expected text, an id, ids or a matrix"
        raise EngineError(msg) from error


def _whole(value: Any) -> int | list[int]:
    """Return one number of an answer, or one list of them."""
    return int(value) if not hasattr(value, "__iter__") else [int(one) for one in value]
