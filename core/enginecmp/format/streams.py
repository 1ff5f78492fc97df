"""Open a file of somebody's run: regular files of a sensible size only, line by line, no line without end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from enginecmp.errors import ResultsError

MOST_MANIFEST_BYTES = 64 * 2**20
"""Of a manifest; a recorded trace of a million arrivals takes a third of it."""

MOST_LINE_BYTES = 64 * 2**20
"""Of a line; a request of two million tokens takes that much."""

MOST_FILE_BYTES = 64 * 2**30
"""Of a file that is read line by line."""


def open_regular(path: Path, most_bytes: int = MOST_FILE_BYTES) -> BufferedReader:
    """Open a regular file for reading; a FIFO, a device or a folder is refused before anything is read from it.

    Args:
        path: of the file; it may be a link to one.
        most_bytes: a larger file is refused.

    Raises:
        FileNotFoundError: nothing is there.
        ResultsError: it cannot be opened, is no regular file, or is too large.
    """
    try:
        # A first look, because opening some devices has effects; without waiting, because a FIFO may have no writer.
        _check(path, os.stat(path), most_bytes)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check(path, os.fstat(descriptor), most_bytes)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(str(path)) from error
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        raise ResultsError(msg) from error


def _check(path: Path, found: os.stat_result, most_bytes: int) -> None:
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
    )
    for is_kind, name in kinds:
        if is_kind(found.st_mode):
            msg = f"{path}: expected a regular file, got {name}"
            raise ResultsError(msg)
    if found.st_size > most_bytes:
        msg = f"{path}: expected at most {most_bytes} bytes, got {found.st_size}"
        raise ResultsError(msg)


def read_lines(path: Path, most_bytes: int = MOST_LINE_BYTES) -> Iterator[bytes]:
    """Yield the lines of a regular file, each with its line end; only the last one can lack it.

    Raises:
        FileNotFoundError: nothing is there.
        ResultsError: as `open_regular`, it cannot be read, or a line is longer than `most_bytes`.
    """
    with open_regular(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(most_bytes + 1)
            except OSError as error:
                msg = f"{path}: cannot be read ({error.strerror or error})"
                raise ResultsError(msg) from error
            if not line:
                return
            if len(line) > most_bytes:
                msg = f"{path}, line {number}: expected at most {most_bytes} bytes a line, got more"
                raise ResultsError(msg)
            yield line
