"""Native failures as errors of ours, panics included."""

from __future__ import annotations

from types import TracebackType

from enginecmp import CmpError, EngineError

_PASSED_ON = (CmpError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


class Native:
    """Context manager around calls into the wheel: what they raise becomes one line of ours.

    A Rust panic reaches Python as `pyo3_runtime.PanicException`, which derives from BaseException: an ordinary
    `except Exception` would let it pass. A class and not a generator, because it also wraps every streamed
    chunk and enters in 0.3 µs.

    Args:
        doing: completes "mistralrs: could not ...".
        error: what to raise.
        next_step: ends the message.
    """

    __slots__ = ("_doing", "_error", "_next_step")

    def __init__(self, doing: str, *, error: type[CmpError] = EngineError, next_step: str = "") -> None:
        self._doing = doing
        self._error = error
        self._next_step = next_step

    def __enter__(self) -> None:
        """Enter; there is nothing to set up."""

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Translate what was raised, if anything was."""
        if raised is None or isinstance(raised, _PASSED_ON):
            return
        panicked = not isinstance(raised, Exception)
        # The wheel appends a native stack trace to many messages; it stays in `__cause__`.
        lines = [line for line in str(raised).splitlines() if line.strip()]
        text = lines[0].strip() if lines else type(raised).__name__
        msg = f"mistralrs: could not {self._doing}: {'panicked: ' if panicked else ''}{text}{self._next_step}"
        # After a panic the state of the native side is unknown, whatever was being asked for.
        raise (EngineError if panicked else self._error)(msg) from raised
