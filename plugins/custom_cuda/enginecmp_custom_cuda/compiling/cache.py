"""Compiled kernels, kept between runs: built once per source, defines, architecture and compiler.

An entry is a file of its own that begins with the SHA-256 of the rest. It is written under another name in the same
folder and renamed, so readers see all of it or nothing, and two processes that build the same thing both end with a
good file. An entry that does not match its checksum is built again. Where nothing can be written, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

MAGIC = b"enginecmp kernel 1\n"
SUFFIX = ".bin"
LIMIT_BYTES = 512 << 20
"""The least recently used entries go when all together are larger."""

STALE_SECONDS = 3600
"""A file under a temporary name that is older was left by a process that died."""


FOLDER_VARIABLE = "ENGINECMP_KERNELS"
"""A folder of entries alone, which may have been filled on another machine."""


def folder() -> Path:
    """Return where entries lie: ENGINECMP_KERNELS, else under ENGINECMP_CACHE, else in the user's cache folder."""
    if carried := os.environ.get(FOLDER_VARIABLE):
        return Path(carried)
    if override := os.environ.get("ENGINECMP_CACHE"):
        return Path(override) / "kernels"
    from platformdirs import user_cache_path

    return user_cache_path("enginecmp") / "kernels"


def key(parts: Iterable[str | bytes]) -> str:
    """Return the name of an entry: a hash of everything that the result depends on, in order.

    Each part's length is hashed too, so ("ab", "c") and ("a", "bc") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def fetch(name: str, build: Callable[[], bytes]) -> bytes:
    """Return an entry, built where there is no good one.

    Args:
        name: from `key`.
        build: makes the content; its errors pass through and leave nothing behind.
    """
    content = read(name)
    if content is None:
        content = build()
        write(name, content)
    return content


def read(name: str) -> bytes | None:
    """Return an entry's content, or None where there is none that matches its checksum."""
    path = folder() / (name + SUFFIX)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    start = len(MAGIC) + hashlib.sha256().digest_size
    if not content.startswith(MAGIC) or content[len(MAGIC) : start] != hashlib.sha256(content[start:]).digest():
        return None
    # Its age decides what is dropped.
    with contextlib.suppress(OSError):
        os.utime(path)
    return content[start:]


def write(name: str, content: bytes) -> bool:
    """Keep an entry and drop the oldest beyond the limit; return False where the folder does not take it."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder(), prefix=f"{name[:16]}-", suffix=".tmp")
    except OSError:
        return False
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + hashlib.sha256(content).digest() + content)
        os.replace(temporary, folder() / (name + SUFFIX))
    except OSError:  # a full disk
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        return False
    prune()
    return True


def forget(name: str) -> None:
    """Drop an entry, for instance one that the driver refuses."""
    with contextlib.suppress(OSError):
        os.unlink(folder() / (name + SUFFIX))


def prune(limit_bytes: int = LIMIT_BYTES) -> None:
    """Drop the least recently used entries until all together fit, and what dead processes left."""
    entries: list[tuple[float, int, Path]] = []
    with contextlib.suppress(OSError):
        for path in folder().iterdir():
            with contextlib.suppress(OSError):  # another process may drop it meanwhile
                found = path.stat()
                if path.suffix == SUFFIX:
                    entries.append((found.st_mtime, found.st_size, path))
                elif path.suffix == ".tmp" and found.st_mtime < time.time() - STALE_SECONDS:
                    path.unlink()
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= limit_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
