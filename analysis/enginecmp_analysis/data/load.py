"""Run folders to columns: find them, check them, read them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from enginecmp.errors import ResultsError
from enginecmp.format.files import MANIFEST, SAMPLES, TELEMETRY, in_run
from enginecmp.format.readers import read_manifest
from enginecmp.format.records import SCHEMA, Manifest, Sample
from enginecmp.format.streams import read_lines
from enginecmp.format.text import command_line, plain
from enginecmp_analysis.data.checks import flag_other_lengths, without_contradictions
from enginecmp_analysis.data.columns import ColumnBuilder, Columns
from enginecmp_analysis.data.equal_work import unshared_note
from enginecmp_analysis.data.metrics import METRICS, learn, measure_of
from enginecmp_analysis.data.repeated import not_begun, without_repeated
from enginecmp_analysis.data.telemetry import Telemetry, read_telemetry
from enginecmp_analysis.data.told import Told, read_told


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what was asked for, what was measured, and what a reader must know about it.

    Attributes:
        manifest: manifest.json.
        columns: samples.jsonl.
        warnings: notes from reading, one sentence each.
        path: the run's folder; None for a run that lives in memory only.
        telemetry: telemetry.jsonl; None where there is none.
        launch_notes: of launches that were repeated, and of those that never began, a sentence each.
        told: averages of launches.jsonl, of imported launches whose requests are not all known.
    """

    manifest: Manifest
    columns: Columns
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    telemetry: Telemetry | None = None
    told: tuple[Told, ...] = ()
    launch_notes: tuple[str, ...] = ()


class _Line(Sample, kw_only=True):
    """A sample as it may stand in a file: what is not a number is null there."""

    metrics: dict[str, float | None] = {}  # type: ignore[assignment]  # noqa: RUF012 msgspec copies it


def load_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read every run that the paths name: run folders, folders of runs, or files of a run.

    Args:
        paths: at least one.

    Returns:
        The runs, each once, in the order of their creation.

    Raises:
        ResultsError: a path holds no run, or a file is not what format version 1 says; names file and line.
    """
    # Each folder once, under the name that was given first: what is said of it stands in reports for others.
    folders: dict[Path, Path] = {}
    for folder in (folder for path in paths for folder in find_runs(Path(path))):
        folders.setdefault(folder.resolve(), folder)
    runs = [load_run(folder) for folder in folders.values()]
    return _each_once(sorted(runs, key=lambda run: (run.manifest.created_utc, run.manifest.run_id)))


def _each_once(runs: Sequence[Run]) -> list[Run]:
    """Leave out copies: two folders with one run would count every launch twice."""
    kept: list[Run] = []
    for run in runs:
        for number, other in enumerate(kept):
            if not _is_copy(run, other):
                continue
            # Of a copy and a run that went on afterwards, the longer one is the whole run.
            long, short = (run, other) if len(run.columns) > len(other.columns) else (other, run)
            note = f"{short.path} is left out: it holds the same run as {long.path}"
            kept[number] = replace(long, warnings=(*long.warnings, note))
            break
        else:
            kept.append(run)
    return kept


def _is_copy(run: Run, other: Run) -> bool:
    """Return whether two folders hold one run: the same id, or the same stamps under another."""
    if run.manifest.run_id == other.manifest.run_id:
        return True
    a, b = run.columns, other.columns
    return (
        len(a) == len(b) > 0
        and run.manifest.model == other.manifest.model
        and np.array_equal(a.start_ns, b.start_ns)
        and np.array_equal(a.end_ns, b.end_ns)
        and np.array_equal(a.token_ns, b.token_ns)
    )


def find_runs(path: Path) -> list[Path]:
    """Return the run folders at a path: itself, or those right below it, sorted by name.

    Raises:
        ResultsError: there is none.
    """
    if path.is_file() and path.name in (MANIFEST, SAMPLES):
        path = path.parent
    if (path / MANIFEST).is_file():
        return [path]
    if not path.is_dir():
        kind = "a file" if path.exists() else "nothing"
        msg = f"{path}: expected a run folder or a folder of runs, found {kind}; make a run with `cmp run`"
        raise ResultsError(msg)
    found = [child.parent for child in sorted(path.glob(f"*/{MANIFEST}"))]
    if not found:
        msg = f"{path}: expected {MANIFEST} in it or in a folder below, found none; make a run with `cmp run`"
        raise ResultsError(msg)
    return found


def load_run(folder: Path, *, sensors: bool = True) -> Run:
    """Read one run folder.

    Args:
        folder: of the run.
        sensors: read what sensors told, too.

    Raises:
        ResultsError: a file is missing or not what format version 1 says.
    """
    manifest = read_manifest(folder)
    _check_goodput(folder / MANIFEST, manifest.scenario.get("goodput"))
    samples = folder / SAMPLES
    warnings = []
    if manifest.status != "complete":
        how = "was killed, or is still going on" if manifest.status == "running" else "was interrupted"
        warnings.append(
            f"run {manifest.run_id} {how}: finish it with: {command_line(['cmp', 'run', '--resume', str(folder)])}"
        )
    if not os.path.lexists(samples):
        warnings.append(f"run {manifest.run_id} has no {SAMPLES}: nothing was measured")
        return Run(manifest, ColumnBuilder().build(), tuple(warnings), folder)
    labels = {engine.name for engine in manifest.engines}
    measure = measure_of(manifest.scenario)
    learn(measure)
    columns, notes = read_samples(samples, labels, [metric.name for metric in measure.metrics] if measure else ())
    scenario = manifest.scenario
    # Files of other tools hold requests of many lengths, and their cell the typical one.
    ours = scenario.get("kind", "requests") == "requests" and scenario.get("source_tool") is None
    columns, more = without_contradictions(columns, samples, ours=ours)
    notes += more
    if ours:
        columns, more = flag_other_lengths(columns, samples)
        notes += more
    columns, repeated = without_repeated(columns)
    notes += unshared_note(columns, samples)
    told = read_told(folder, labels)
    columns = replace(columns, told=frozenset((average.launch, average.cell) for average in told))
    telemetry = None
    if sensors and os.path.lexists(folder / TELEMETRY):
        telemetry, more = read_telemetry(folder / TELEMETRY)
        notes += more
    return Run(manifest, columns, (*warnings, *notes), folder, telemetry, told, (*repeated, *not_begun(folder)))


def _check_goodput(path: Path, limits: object) -> None:
    """Refuse limits of `[goodput]` that are not a latency each with its seconds."""
    if limits is None:
        return
    wrong = [("goodput", limits)] if not isinstance(limits, dict) else []
    wrong += [
        (name, limit)
        for name, limit in (limits.items() if isinstance(limits, dict) else ())
        if name not in METRICS
        or METRICS[name].per != "request"
        or not (limit is None or (type(limit) in (int, float) and 0 < limit < math.inf))
    ]
    if wrong:
        name, limit = wrong[0]
        msg = f"{path}: scenario.goodput: expected metrics of requests with seconds above 0, got {name} = {limit!r:.80}"
        raise ResultsError(msg)


def read_samples(path: Path, engines: Iterable[str], brought: Iterable[str] = ()) -> tuple[Columns, list[str]]:
    """Read samples.jsonl, line by line, so that memory holds numbers and not objects.

    Args:
        path: the file.
        engines: labels that the manifest knows.
        brought: names of the metrics that the measurement of a plugin has.

    Returns:
        The columns, and notes (a torn last line was dropped).

    Raises:
        ResultsError: a line is not a sample; names file and line number.
    """
    known = set(engines)
    decode = msgspec.json.Decoder(_Line).decode
    builder = ColumnBuilder(brought)
    notes: list[str] = []
    try:
        for number, line in enumerate(read_lines(path), start=1):
            try:
                sample = decode(line)
                if sample.engine not in known:
                    msg = f"engine '{plain(sample.engine)}' is not in the manifest"
                    raise ValueError(msg)
                if None in sample.metrics.values():
                    sample.metrics = {name: value for name, value in sample.metrics.items() if value is not None}
                builder.add(sample)
            except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
                # Only the last line can lack its newline, and only a torn write leaves it so.
                if not line.endswith(b"\n"):
                    notes.append(f"{in_run(path)}: dropped the torn last line, {number}")
                    break
                msg = f"{path}, line {number}: not a sample of '{SCHEMA}': {error}"
                raise ResultsError(msg) from error
    except FileNotFoundError as error:
        msg = f"{path}: cannot be read (a link to nothing)"
        raise ResultsError(msg) from error
    return builder.build(), notes
