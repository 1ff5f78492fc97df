"""The writing side of results format version 1.

A run's folder holds manifest.json (replaced atomically), samples.jsonl (append-only, one write a line),
launches.jsonl (one line per launch that is over) and logs/. Only one process writes into a results folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import msgspec

from enginecmp.errors import CannotWrite, FolderHeld, ResultsError, UnreadableSample
from enginecmp.format.check import checked_line
from enginecmp.format.files import LAUNCHES, LOGS, MANIFEST, SAMPLES
from enginecmp.format.flags import Flag
from enginecmp.format.readers import whole_lines
from enginecmp.format.records import LaunchRecord, Manifest, Sample
from enginecmp.format.text import to_json
from enginecmp.results.files import replace


class ResultsFolder:
    """A folder of runs, held by at most one writing process.

    Args:
        path: created if it does not exist.

    Raises:
        FolderHeld: another run is writing into it.
        ResultsError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115 held until close
        except OSError as error:
            reason = "it is a file" if path.is_file() else error.strerror or error
            msg = f"results folder {path}: cannot write: {reason}; choose another with --out"
            raise ResultsError(msg) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            msg = f"results folder {path}: {holder} is writing into it; wait for it, or choose another for a new run"
            raise FolderHeld(msg) from error
        with contextlib.suppress(OSError):  # a full disk must not hide behind the lock's comment
            self._lock.truncate(0)
            self._lock.write(f"the run of process {os.getpid()}\n")
            self._lock.flush()
        _remove_leftovers(path)

    def __enter__(self) -> Self:
        """Return the held folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        self._lock.close()


def _remove_leftovers(results: Path) -> None:
    """Remove folders in which the gates of killed runs kept logits; the lock is held, so no gate is under way."""
    for folder in results.glob(f"*/{LOGS}/gate-*/"):
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


class RunWriter:
    """Writes one run: every finished request is on disk before the next one starts.

    Args:
        folder: the run's own folder; created with its logs/.
        manifest: what is known at the start; written at once.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        try:
            (folder / LOGS).mkdir(parents=True, exist_ok=True)
            self._samples = os.open(folder / SAMPLES, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        self.write_manifest()

    def write_manifest(self) -> None:
        """Replace manifest.json atomically."""
        write_in_run(self.folder / MANIFEST, to_json(self.manifest, indent=1) + b"\n")

    def append(self, sample: Sample) -> None:
        """Append one sample line.

        Raises:
            UnreadableSample: no reader would take it; nothing was written.
            CannotWrite: the disk is full or gone; the file then ends with the last whole line.
        """
        line, wrong = checked_line(sample)
        if wrong:
            msg = f"{sample.engine}: request {sample.index}: {wrong}"
            raise UnreadableSample(msg)
        line += b"\n"
        end = os.lseek(self._samples, 0, os.SEEK_END)
        try:
            written = os.write(self._samples, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._samples, end)
            raise _cannot_write(self.folder, error) from error

    def end_launch(self, record: LaunchRecord) -> None:
        """Sync the samples and note that a launch is over."""
        try:
            os.fsync(self._samples)
            with open(self.folder / LAUNCHES, "ab") as file:
                file.write(to_json(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def close(self) -> None:
        """Sync and close; the manifest says how the run ended."""
        with contextlib.suppress(OSError):
            os.fsync(self._samples)
        os.close(self._samples)


def write_in_run(path: Path, content: bytes) -> None:
    """Replace a file of a run.

    Raises:
        CannotWrite: the old file is still there.
    """
    try:
        replace(path, content)
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> CannotWrite:
    return CannotWrite(f"results folder {folder}: {error.strerror or error}")


class Torn(msgspec.Struct, frozen=True):
    """What a cut-off run left behind.

    Attributes:
        launches: names of launches that never finished, all restarts included.
        samples: how many samples were marked just now.
    """

    launches: list[str]
    samples: int


def mark_torn(folder: Path, finished: Iterable[str]) -> Torn:
    """Flag the samples of launches that never finished, and drop a torn last line.

    The file is replaced atomically. Samples keep their values: the flag leaves them out by rule.

    Args:
        folder: of the run.
        finished: names of the launches that are over.
    """
    path = folder / SAMPLES
    keep = set(finished)
    launches: dict[str, None] = {}
    marked = 0
    lines: list[bytes] = []
    for sample in whole_lines(path, Sample):
        if sample.launch not in keep:
            launches[sample.launch] = None
            if Flag.TORN_LAUNCH not in sample.flags:
                sample.flags = [*sample.flags, Flag.TORN_LAUNCH]
                marked += 1
        lines.append(to_json(sample) + b"\n")
    if path.exists() and (marked or path.stat().st_size != sum(map(len, lines))):
        write_in_run(path, b"".join(lines))
    return Torn(list(launches), marked)
