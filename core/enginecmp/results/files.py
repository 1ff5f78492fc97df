"""Files that are replaced whole: a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from enginecmp.errors import CmpError


def replace(path: Path, content: bytes) -> None:
    """Write a file, through another one beside it; a link stays one, and what it points to is written.

    Raises:
        OSError: it cannot be written, or a folder, FIFO or device is there; that, or the old file, is still there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():  # the rename below would put a file in the place of a device
        raise OSError(errno.EEXIST, "expected a regular file or nothing there, got a folder, FIFO or device")
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomically(path: Path, content: bytes, advice: str = "make room or grant access, and try again") -> None:
    """Write a file as `replace` does.

    Args:
        path: the file.
        content: all of it.
        advice: what a user can do where that fails.

    Raises:
        CmpError: it cannot be written; the old file is still there.
    """
    try:
        replace(path, content)
    except OSError as error:
        msg = f"{path}: cannot be written ({error.strerror or error}); {advice}"
        raise CmpError(msg) from error
