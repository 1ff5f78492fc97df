"""Small files that this user's earlier commands left in the cache folder; nobody else's are read."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def own_folder(name: str) -> Path | None:
    """Return a folder in the user's cache; None in an isolated environment, where nothing is kept."""
    try:
        import platformdirs
    except ImportError:
        return None
    return platformdirs.user_cache_path("enginecmp") / name


def read_own(folder: Path | None, key: str, most_bytes: int) -> bytes | None:
    """Return the content of a file that this user wrote; None where there is none, or one too large."""
    if folder is None:
        return None
    try:
        file = os.open(folder / key, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        found = os.fstat(file)
        # What is on file decides what is started and believed: another user's file has no say in that.
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
        return os.read(file, most_bytes) if ours and found.st_size <= most_bytes else None
    except OSError:
        return None
    finally:
        os.close(file)


def keep(folder: Path | None, key: str, content: bytes, most_entries: int) -> None:
    """Replace a file whole and drop the oldest beyond `most_entries`; where nothing can be written, nothing is kept."""
    if folder is None:
        return
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, folder / key)
            except OSError:
                os.unlink(file.name)
                raise
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-most_entries]:
            old.unlink()
