"""The writing side of results format version 1, and what resuming a run needs to read.

A run's folder holds manifest.json (replaced atomically), samples.jsonl (append-only, one write a line),
launches.jsonl (one line per launch that is over) and logs/. Only one process writes into a results folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.files import replace
from enginecmp.types import SCHEMA, Manifest, Sample

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
LAUNCHES = "launches.jsonl"
CALIBRATION = "calibration.jsonl"
LOGS = "logs"

TORN_LAUNCH = "torn_launch"
"""Flag of samples whose launch was cut off and redone on resume."""


class LaunchRecord(msgspec.Struct, kw_only=True):
    """One line of launches.jsonl: a launch that is over.

    Attributes:
        launch: its name in the samples.
        block: number of the block.
        engine: label.
        status: ok, error, timeout or crash.
        seconds: from spawn to the end of the process.
        error: what happened, else null.
        peak_rss_bytes: of the worker process.
        cell: number of the cell that it was for, where cells have launches of their own.
        notes: what a reader should know of it, e.g. that the engine was overloaded.
    """

    launch: str
    block: int
    engine: str
    status: str
    seconds: float
    error: str | None = None
    peak_rss_bytes: int | None = None
    cell: int | None = None
    notes: list[str] = []

    @property
    def key(self) -> tuple[int, str, int | None]:
        """What makes it the same launch as one that is planned."""
        return self.block, self.engine, self.cell


class ResultsFolder:
    """A folder of runs, held by at most one writing process.

    Args:
        path: created if it does not exist.

    Raises:
        ResultsError: unwritable, or another run is writing into it.
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
            raise ResultsError(msg) from error
        with contextlib.suppress(OSError):  # a full disk must not hide behind the lock's comment
            self._lock.truncate(0)
            self._lock.write(f"the run of process {os.getpid()}\n")
            self._lock.flush()

    def __enter__(self) -> Self:
        """Return the held folder."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the folder go."""
        self._lock.close()


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
        self._encoder = msgspec.json.Encoder()
        self.write_manifest()

    def write_manifest(self) -> None:
        """Replace manifest.json atomically."""
        text = msgspec.json.format(self._encoder.encode(self.manifest), indent=1)
        write_in_run(self.folder / MANIFEST, text + b"\n")

    def append(self, sample: Sample) -> None:
        """Append one sample line.

        Raises:
            ResultsError: the disk is full or gone; the file then ends with the last whole line.
        """
        line = self._encoder.encode(sample) + b"\n"
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
                file.write(self._encoder.encode(record) + b"\n")
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
        ResultsError: it cannot be written; the old file is still there, and the run can be resumed.
    """
    try:
        replace(path, content)
    except OSError as error:
        raise _cannot_write(path.parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> ResultsError:
    msg = (
        f"results folder {folder}: {error.strerror or error}; what was measured is kept; "
        f"mend it and finish with `cmp run --resume {folder}`"
    )
    return ResultsError(msg)


def read_manifest(folder: Path) -> Manifest:
    """Return a run's manifest.

    Raises:
        ResultsError: missing, not JSON, or of another format version.
    """
    path = folder / MANIFEST
    try:
        content: Any = msgspec.json.decode(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        msg = f"{folder}: no {MANIFEST}, so this is not a run's folder"
        raise ResultsError(msg) from error
    except (OSError, msgspec.DecodeError) as error:
        msg = f"{path}: cannot read: {error}"
        raise ResultsError(msg) from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        msg = f"{path}: expected schema '{SCHEMA}', got {schema!r}"
        raise ResultsError(msg)
    try:
        return msgspec.convert(content, Manifest)
    except msgspec.ValidationError as error:
        msg = f"{path}: {error}"
        raise ResultsError(msg) from error


def finished_launches(folder: Path) -> list[LaunchRecord]:
    """Return the launches that are over, in their order; a torn last line counts as not written."""
    return list(_whole_lines(folder / LAUNCHES, LaunchRecord))


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
    encoder = msgspec.json.Encoder()
    lines: list[bytes] = []
    for sample in _whole_lines(path, Sample):
        if sample.launch not in keep:
            launches[sample.launch] = None
            if TORN_LAUNCH not in sample.flags:
                sample.flags = [*sample.flags, TORN_LAUNCH]
                marked += 1
        lines.append(encoder.encode(sample) + b"\n")
    if path.exists() and (marked or path.stat().st_size != sum(map(len, lines))):
        write_in_run(path, b"".join(lines))
    return Torn(list(launches), marked)


def _whole_lines(path: Path, kind: Any) -> Iterator[Any]:
    """Yield each line of a JSON lines file as `kind`; a last line without its end is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        msg = f"{path}: cannot read: {error.strerror or error}"
        raise ResultsError(msg) from error
    decoder = msgspec.json.Decoder(kind)
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError as error:
            msg = f"{path}:{number}: {error}"
            raise ResultsError(msg) from error
