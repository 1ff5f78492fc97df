"""Ask a process of its own one thing, with a deadline: whatever it does instead of answering, it does there.

The answer comes through a file in memory that is read when the process is gone, so that nothing it does, or leaves
behind, can hold the host up.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from enginecmp.errors import LaunchError
from enginecmp.format.text import plain
from enginecmp.wire.guarded import GuardedProcess


class NoAnswer(LaunchError):
    """A process was asked and did not answer.

    Attributes:
        late: it was still at it when its time was over.
        printed: the last line that it printed.
    """

    def __init__(self, message: str, *, late: bool = False, printed: str = "") -> None:
        super().__init__(message)
        self.late = late
        self.printed = printed


class AskedProcess:
    """One process that is being asked; several may be at it at once.

    Args:
        module: run as `python -P -m MODULE ANSWER_FD ARGUMENTS...`; it writes its answer to that file and ends with 0.
        *arguments: further ones.
        seconds: until it must be over.
        most_bytes: longest answer that is read.

    Raises:
        LaunchError: it cannot be started.
        OSError: likewise.
    """

    def __init__(self, module: str, *arguments: str, seconds: float, most_bytes: int) -> None:
        self._seconds = seconds
        self._most_bytes = most_bytes
        self._answer = os.memfd_create("cmp-answer")
        self._printed = os.memfd_create("cmp-answer-printed")
        self._closed = False
        try:
            self._process = GuardedProcess(
                [sys.executable, "-P", "-m", module, str(self._answer), *arguments],
                Path(f"/proc/self/fd/{self._printed}"),
                (self._answer,),
                {**os.environ, "PYTHONSAFEPATH": "1"},
            )
        except BaseException:
            self._close_files()
            raise
        self._end = time.monotonic() + seconds

    def answer(self) -> bytes:
        """Wait for the answer until the deadline, and end the process.

        Raises:
            NoAnswer: it came too late, is too long, or the process ended without one; the message is a predicate.
        """
        self._process.reap(max(0.0, self._end - time.monotonic()))
        code = self._process.returncode
        self._process.kill()
        if code is None:
            msg = f"did not end within {self._seconds:g} s"
            raise NoAnswer(msg, late=True)
        size = os.fstat(self._answer).st_size
        if size > self._most_bytes:
            msg = f"expected at most {self._most_bytes} bytes, got {size}"
            raise NoAnswer(msg)
        if size == 0 or code != 0:
            raise NoAnswer(self._process.how_it_ended(), printed=self._last_line())
        return os.pread(self._answer, size, 0)

    def _last_line(self) -> str:
        """Return the last line that was printed, the reason as a rule."""
        size = os.fstat(self._printed).st_size
        tail = os.pread(self._printed, 2048, max(0, size - 2048)).decode(errors="replace").strip()
        return plain(tail.splitlines()[-1], 300) if tail else ""

    def close(self) -> None:
        """Let everything go, whatever came of it; safe to call twice."""
        if not self._closed:
            self._process.kill()
            self._close_files()

    def _close_files(self) -> None:
        self._closed = True
        for file in (self._answer, self._printed):
            os.close(file)
