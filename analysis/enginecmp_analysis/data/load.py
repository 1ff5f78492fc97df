"""Run folders to columns: find them, check them, read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from enginecmp.errors import ResultsError
from enginecmp.types import SCHEMA, Manifest, Sample
from enginecmp_analysis.data.columns import ColumnBuilder, Columns
from enginecmp_analysis.data.telemetry import TELEMETRY, Telemetry, read_telemetry

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was asked for, what was measured, and what a reader must know about it.

    Attributes:
        manifest: manifest.json.
        columns: samples.jsonl.
        warnings: notes from reading, one sentence each.
        path: the run's folder; None for a run that lives in memory only.
        telemetry: telemetry.jsonl; None where there is none.
    """

    manifest: Manifest
    columns: Columns
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    telemetry: Telemetry | None = None


class _Schema(msgspec.Struct):
    schema: str


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read every run that the paths name: run folders, folders of runs, or files of a run.

    Args:
        paths: at least one.

    Returns:
        The runs, each once, in the order of their creation.

    Raises:
        ResultsError: a path holds no run, or a file is not what format version 1 says; names file and line.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in find_runs(Path(path))))
    return sorted(
        (load_run(folder) for folder in folders), key=lambda run: (run.manifest.created_utc, run.manifest.run_id)
    )


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at a path: itself, or those right below it, sorted by name.

    Raises:
        ResultsError: there is none.
    """
    if path.is_file() and path.name in (MANIFEST, SAMPLES):
        path = path.parent
    if (path / MANIFEST).is_file():
        return [path.resolve()]
    if not path.is_dir():
        kind = "a file" if path.exists() else "nothing"
        msg = f"{path}: expected a run folder or a folder of runs, found {kind}; make a run with `cmp run`"
        raise ResultsError(msg)
    found = [child.parent.resolve() for child in sorted(path.glob(f"*/{MANIFEST}"))]
    if not found:
        msg = f"{path}: expected {MANIFEST} in it or in a folder below, found none; make a run with `cmp run`"
        raise ResultsError(msg)
    return found


def load_run(folder: Path) -> Run:
    """Read one run folder.

    Raises:
        ResultsError: a file is missing or not what format version 1 says.
    """
    manifest = read_manifest(folder / MANIFEST)
    samples = folder / SAMPLES
    warnings = []
    if manifest.status != "complete":
        how = "was killed, or is still going on" if manifest.status == "running" else "was interrupted"
        warnings.append(f"run {manifest.run_id} {how}: finish it with `cmp run --resume {folder}`")
    if not samples.exists():
        warnings.append(f"run {manifest.run_id} has no {SAMPLES}: nothing was measured")
        return Run(manifest, ColumnBuilder().build(), tuple(warnings), folder)
    columns, notes = read_samples(samples, {engine.name for engine in manifest.engines})
    telemetry = None
    if (folder / TELEMETRY).exists():
        telemetry, more = read_telemetry(folder / TELEMETRY)
        notes += more
    return Run(manifest, columns, (*warnings, *notes), folder, telemetry)


def read_manifest(path: Path) -> Manifest:
    """Read and check manifest.json.

    Raises:
        ResultsError: it is not JSON, of another format version, or lacks a field.
    """
    try:
        raw = path.read_bytes()
        schema = msgspec.json.decode(raw, type=_Schema).schema
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise ResultsError(msg) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: expected a manifest with a schema, got: {error}"
        raise ResultsError(msg) from error
    if schema != SCHEMA:
        msg = f"{path}: expected schema '{SCHEMA}', got '{schema}'; read it with the version of enginecmp that wrote it"
        raise ResultsError(msg)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        msg = f"{path}: not a manifest of '{SCHEMA}': {error}"
        raise ResultsError(msg) from error
    labels = [engine.name for engine in manifest.engines]
    if len(set(labels)) != len(labels):
        msg = f"{path}: expected every engine label once, got {', '.join(labels)}"
        raise ResultsError(msg)
    return manifest


def read_samples(path: Path, engines: Iterable[str]) -> tuple[Columns, list[str]]:
    """Read samples.jsonl, line by line, so that memory holds numbers and not objects.

    Args:
        path: the file.
        engines: labels that the manifest knows.

    Returns:
        The columns, and notes (a torn last line was dropped).

    Raises:
        ResultsError: a line is not a sample; names file and line number.
    """
    known = set(engines)
    decode = msgspec.json.Decoder(Sample).decode
    builder = ColumnBuilder()
    notes: list[str] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    sample = decode(line)
                    if sample.engine not in known:
                        msg = f"engine '{sample.engine}' is not in the manifest"
                        raise ValueError(msg)
                    builder.add(sample)
                except (msgspec.DecodeError, ValueError, OverflowError) as error:
                    # Only the last line can lack its newline, and only a torn write leaves it so.
                    if not line.endswith(b"\n"):
                        notes.append(f"{path}: dropped the torn last line, {number}")
                        break
                    msg = f"{path}, line {number}: not a sample of '{SCHEMA}': {error}"
                    raise ResultsError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror})"
        raise ResultsError(msg) from error
    columns = builder.build()
    _check_times(path, columns)
    return columns, notes


def _check_times(path: Path, columns: Columns) -> None:
    """Refuse stamps that run backwards: they would become negative latencies."""
    wrong = columns.end_ns < columns.start_ns
    if len(columns.token_ns):
        counts = np.diff(columns.offsets)
        some = counts > 0
        first, last = columns.offsets[:-1][some], columns.offsets[1:][some] - 1
        wrong[some] |= columns.token_ns[first] < columns.start_ns[some]
        wrong[some] |= columns.token_ns[last] > columns.end_ns[some]
        backwards = np.flatnonzero(np.diff(columns.token_ns) < 0) + 1
        owner = np.searchsorted(columns.offsets, backwards, side="right") - 1
        wrong[owner[columns.offsets[owner] != backwards]] = True
    # The clock rules hold for what was measured; a crash may end before its stamps do.
    wrong &= columns.excluded == 0
    if wrong.any():
        msg = f"{path}, line {int(np.argmax(wrong)) + 1}: expected start_ns <= token_ns (rising) <= end_ns"
        raise ResultsError(msg)
