"""Which server a worker drives, left where the sensors' process finds it by the worker's process id.

The sensors run in a process of their own and know of a launch its processes alone. The file holds the engine's
options, which hold no secret, and goes with the session; one that a killed worker left is told by its age.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import msgspec
import psutil

from enginecmp.plugins.own_files import keep, own_folder, read_own

_FOLDER = "servers"
_MOST_BYTES = 1 << 16
_MOST_FILES = 64


class Announced(msgspec.Struct, frozen=True):
    """A server that a worker drives.

    Attributes:
        kind: key of `kinds.KINDS`.
        extra: the engine's options.
        began: when the worker's process began, in seconds of `psutil.Process.create_time`.
    """

    kind: str
    extra: Mapping[str, str]
    began: float


def announce(kind: str, extra: Mapping[str, str]) -> None:
    """Say that this process drives a server."""
    announced = Announced(kind, dict(extra), psutil.Process().create_time())
    keep(own_folder(_FOLDER), str(os.getpid()), msgspec.json.encode(announced), _MOST_FILES)


def withdraw() -> None:
    """Say that this process drives none any more."""
    folder = own_folder(_FOLDER)
    if folder is not None:
        with contextlib.suppress(OSError):
            (folder / str(os.getpid())).unlink()


def announced(pid: int) -> Announced | None:
    """Return the server that a process drives; None where it drives none."""
    content = read_own(own_folder(_FOLDER), str(pid), _MOST_BYTES)
    if content is None:
        return None
    with contextlib.suppress(msgspec.MsgspecError, psutil.Error):
        found = msgspec.json.decode(content, type=Announced)
        if psutil.Process(pid).create_time() == found.began:
            return found
    return None
