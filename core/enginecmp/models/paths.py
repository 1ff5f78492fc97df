"""What a path must be before a weights file is read from it or written to it."""

from __future__ import annotations

import stat
from pathlib import Path

from enginecmp.errors import ModelError
from enginecmp.format.text import plain


def require_regular(path: Path, kind: str = "GGUF") -> int:
    """Return a file's size.

    Args:
        path: the file.
        kind: what it should be, for errors.

    Raises:
        ModelError: it is missing, or no regular file: opening a FIFO blocks for ever, reading a device may not end.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"{path}: expected a readable {kind} file, got: {reason or error}"
        raise ModelError(msg) from error
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        msg = f"{path}: expected a {kind} file, got {found}, not a regular file"
        raise ModelError(msg)
    return status.st_size


def named_in_utf8(path: Path) -> Path:
    """Return a path that results can hold and engines can be told: JSON and most engines know UTF-8 alone.

    Raises:
        ModelError: its bytes are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        msg = f"{plain(str(path), 400)}: expected a path in UTF-8, got other bytes; rename the file, or link to it"
        raise ModelError(msg) from error
    return path
