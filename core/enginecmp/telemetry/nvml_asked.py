"""Asks the NVIDIA driver in a process of its own, with a deadline: one that crashes or hangs ends that process alone.

`python -P -m enginecmp.telemetry.nvml_asked ANSWER_FD MODULE:FUNCTION ARGUMENTS...` is that process.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from enginecmp.errors import LaunchError, SensorAbsent
from enginecmp.format.text import plain
from enginecmp.telemetry.nvml import load_library
from enginecmp.wire.asked import AskedProcess, NoAnswer

ANSWER_SECONDS = 30.0
"""A driver that takes longer hangs; without persistence each GPU needs a second or two to wake."""

_MOST_BYTES = 1 << 20

_silent: list[tuple[str, BaseException]] = []
"""Why nothing could be asked the last time in this process: no library comes, and no driver wakes, meanwhile."""


class _Answer(msgspec.Struct):
    """What the process says: what the function returned, or that there is no library to ask."""

    ok: Any = None
    absent: str = ""


def ask(question: str, *arguments: str) -> Any:
    """Return what a function returns that asks NVML, called in a process of its own.

    Args:
        question: "MODULE:FUNCTION".
        *arguments: of the function.

    Returns:
        Its answer, msgpack types.

    Raises:
        SensorAbsent: there is no library (caused by an OSError), or its process crashed (LaunchError) or did not
            answer in time (TimeoutError).
    """
    if not _silent:
        try:
            answer = _asked(question, *arguments)
        except NoAnswer as error:
            if error.late:
                msg = f"the driver hangs: no answer within {ANSWER_SECONDS:g} s"
                _silent.append((msg, TimeoutError()))
            else:
                printed = f"; it printed: {error.printed}" if error.printed else ""
                _silent.append((f"the process that asked the driver {error}{printed}", error))
        except (LaunchError, OSError) as error:
            _silent.append((f"the driver cannot be asked: {error}", LaunchError(str(error))))
        else:
            if not answer.absent:
                return answer.ok
            _silent.append((answer.absent, OSError(answer.absent)))
    reason, cause = _silent[0]
    msg = f"nvml: {reason.removeprefix('nvml: ')}"
    raise SensorAbsent(msg) from cause


def _asked(question: str, *arguments: str) -> _Answer:
    """Return the answer of the process.

    Raises:
        NoAnswer: there is none.
        LaunchError: it cannot be started.
        OSError: likewise.
    """
    process = AskedProcess(__name__, question, *arguments, seconds=ANSWER_SECONDS, most_bytes=_MOST_BYTES)
    try:
        return msgspec.msgpack.decode(process.answer(), type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"wrote something else than its answer: {plain(str(error))}"
        raise NoAnswer(msg) from error
    finally:
        process.close()


def main(arguments: list[str]) -> None:
    """Answer, and end at once, whatever the driver left running."""
    try:
        load_library()
        module, _, name = arguments[1].partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        answer = _Answer(ok=function(*arguments[2:]))
    except SensorAbsent as absent:
        answer = _Answer(absent=str(absent))
    data = msgspec.msgpack.encode(answer)
    written = os.pwrite(int(arguments[0]), data, 0)
    os._exit(0 if written == len(data) else 1)


if __name__ == "__main__":
    main(sys.argv[1:])
