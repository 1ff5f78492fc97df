"""File descriptors that a host hands to its children."""

from __future__ import annotations

import contextlib
import fcntl
import os


def clear_of_standard_streams(descriptor: int) -> int:
    """Return a descriptor above 2 in place of one that may be below: there a child puts its standard streams.

    A host that was started with closed standard streams gets their numbers for whatever it opens first.
    """
    if descriptor > 2:
        return descriptor
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return moved


def shared_memory(name: str, size: int) -> int:
    """Return a descriptor of anonymous memory whose size nobody can change: reading a page that is gone would kill."""
    descriptor = clear_of_standard_streams(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(descriptor, size)
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor
