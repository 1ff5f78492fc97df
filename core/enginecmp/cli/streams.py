"""Standard streams that are closed, full or left by their reader: told in one line, never as a traceback."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import BinaryIO, TextIO

from enginecmp.errors import CmpError


class ReaderGone(Exception):
    """The reader of our output went away (`cmp stats | head`): not an error, and nothing more to say."""


class _Output(io.TextIOWrapper):
    """Standard output whose failures name it; what it cannot encode is escaped."""

    def write(self, text: str) -> int:
        """Write text.

        Raises:
            ReaderGone: nobody reads any more.
            CmpError: closed, or the disk behind it is full.
        """
        with _named():
            return super().write(text)

    def flush(self) -> None:
        """Flush; raises as `write` does."""
        with _named():
            super().flush()


@contextlib.contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error
    except OSError as error:
        msg = f"standard output: {error.strerror or error}; nothing else is wrong, but the output is not complete"
        raise CmpError(msg) from error


class _Messages(io.TextIOWrapper):
    """Standard error: a message that nobody can get must not end a run."""

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        with contextlib.suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what cannot be written."""
        with contextlib.suppress(OSError):
            super().flush()


def prepare_streams() -> None:
    """Give every standard stream a descriptor, so that no file or socket takes its number, and failures a name."""
    # Read-only for output: writing to a closed stream is an error ("Bad file descriptor"), not writing is none.
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, mode)  # the lowest free number: this one
            assert opened == descriptor
            os.set_inheritable(descriptor, True)
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 lives as long as the process
    sys.stdout = _Output(_raw(sys.stdout, 1), "utf-8", "backslashreplace", line_buffering=os.isatty(1))
    sys.stderr = _Messages(_raw(sys.stderr, 2), "utf-8", "backslashreplace", line_buffering=True)


def _raw(stream: TextIO | None, descriptor: int) -> BinaryIO:
    # None where Python found the descriptor closed.
    return open(descriptor, "wb", closefd=False) if stream is None else stream.buffer


def give_up_output() -> None:
    """Let what is still buffered for standard output go nowhere, so that leaving raises nothing."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
