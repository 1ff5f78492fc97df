"""A run's folder as messages, and back: what comes from another machine is checked before it is a file.

Only regular files travel, so no link and no device can come out at the other end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from enginecmp.errors import ResultsError
from enginecmp.format.text import plain
from enginecmp.placement.messages import CHUNK_BYTES, Chunk, ConnectionLost, Done, File, Known, Message

MOST_BYTES = 16 * 2**30
"""Of a run's folder."""

MOST_FILES = 20_000


def pieces(path: Path) -> Iterator[Chunk]:
    """Yield a file's chunks, the empty one last.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            yield Chunk(data)
    yield Chunk(b"")


def send_folder(folder: Path, send: Callable[[Message], None]) -> None:
    """Send the regular files of a folder; links, devices and what is no printable UTF-8 are left out.

    Args:
        folder: of a run.
        send: called with each message.

    Raises:
        OSError: a file cannot be read.
    """
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.isprintable() and path.is_file() and not path.is_symlink():
            send(File(name))
            for piece in pieces(path):
                send(piece)
    send(Done())


def receive_folder(receive: Callable[[], Known], target: Path, most_bytes: int = MOST_BYTES) -> None:
    """Make a folder out of what `send_folder` sent.

    Args:
        receive: returns the next message.
        target: folder to make, or to replace; it appears only when everything is there.
        most_bytes: of all files.

    Raises:
        ResultsError: a name leads out of the folder or is none, there is more than a run can hold, or it cannot be
            written; nothing is left of it.
        ConnectionLost: another message came.
    """
    incoming = target.parent / f".incoming-{target.name}"
    shutil.rmtree(incoming, ignore_errors=True)
    left, number = most_bytes, 0
    try:
        incoming.mkdir()
        while not isinstance(message := receive(), Done):
            number += 1
            if not isinstance(message, File):
                raise ConnectionLost(f"expected a file, got {type(message).__name__}")  # noqa: EM102
            if number > MOST_FILES:
                msg = f"{target.name}: expected at most {MOST_FILES} files, got more"
                raise ResultsError(msg)
            left = _receive_file(receive, _inside(incoming, message.path), left)
        if target.exists():
            shutil.rmtree(target)
        os.replace(incoming, target)
    except OSError as error:
        msg = f"{target}: what came cannot be written ({error.strerror or error})"
        raise ResultsError(msg) from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file below a folder.

    Raises:
        ResultsError: it would lie elsewhere, or has no printable name.
    """
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") or "\\" in part for part in parts):
        msg = f"expected the name of a file inside the run, got '{plain(name, 100)}'"
        raise ResultsError(msg)
    path = folder.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _receive_file(receive: Callable[[], Known], path: Path, left: int) -> int:
    """Write one file, and return how many bytes may still come."""
    with open(path, "xb") as file:
        while True:
            message = receive()
            if not isinstance(message, Chunk):
                raise ConnectionLost(f"expected a chunk, got {type(message).__name__}")  # noqa: EM102
            if not message.data:
                return left
            left -= len(message.data)
            if left < 0:
                msg = f"{path.name}: expected a run of a sensible size, got more bytes than that"
                raise ResultsError(msg)
            file.write(message.data)
