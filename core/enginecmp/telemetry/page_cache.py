"""Which part of a file lies in the page cache, and how to get all of it out or in: cold and warm loads."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READ_BYTES = 1 << 22


def resident_share(*paths: Path | str) -> float | None:
    """Return which share of the pages of some files is in memory, or None where this user cannot be told.

    mincore(2) answers "all" to everyone who neither owns the file nor may write to it (Linux 5.2 and later).

    Raises:
        OSError: a file cannot be opened.
    """
    pages = resident = 0
    for path in paths:
        status = os.stat(path)
        if status.st_size == 0 or not (status.st_uid == os.geteuid() or os.access(path, os.W_OK)):
            return None
        with _mapped(path, status.st_size) as (libc, address):
            here = -(-status.st_size // mmap.PAGESIZE)
            vector = (ctypes.c_ubyte * here)()
            if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(status.st_size), vector) != 0:
                return None
            import numpy as np

            # The low bit of each byte; the others are reserved.
            resident += int(np.count_nonzero(np.ctypeslib.as_array(vector) & 1))
            pages += here
    return resident / pages


def drop(path: Path | str) -> None:
    """Ask the kernel to take a file out of the page cache; only `resident_share` tells whether it did.

    Raises:
        OSError: the file cannot be opened or synced.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Pages that are not on the disk yet stay in memory whatever is asked.
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def warm(path: Path | str) -> None:
    """Read a file once, so that the next one to read it need not wait for the disk.

    Raises:
        OSError: the file cannot be read.
    """
    buffer = bytearray(_READ_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


@contextmanager
def _mapped(path: Path | str, size: int) -> Iterator[tuple[ctypes.CDLL, int]]:
    """Map a file and give its address; Python's own mmap does not tell one for a read-only map."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    try:
        yield libc, address
    finally:
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
