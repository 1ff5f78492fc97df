"""Read a run's manifest and its lines: the one place, for resuming a run as for analysing it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.format.files import LAUNCHES, MANIFEST
from enginecmp.format.records import SCHEMA, LaunchRecord, Manifest
from enginecmp.format.streams import MOST_MANIFEST_BYTES, open_regular, read_lines

_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What decoding raises: no JSON, another type, no UTF-8, nested without end."""


class _Schema(msgspec.Struct):
    schema: str


def read_manifest(folder: Path) -> Manifest:
    """Return a run's manifest, with the names of today where an earlier version wrote others.

    Args:
        folder: of the run.

    Raises:
        ResultsError: it is missing, not JSON, of another format version, lacks a field or names an engine twice.
    """
    path = folder / MANIFEST
    try:
        with open_regular(path, MOST_MANIFEST_BYTES) as file:
            raw = file.read()
    except FileNotFoundError as error:
        msg = f"{folder}: no {MANIFEST}, so this is not a run's folder"
        raise ResultsError(msg) from error
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error})"
        raise ResultsError(msg) from error
    try:
        schema = msgspec.json.decode(raw, type=_Schema).schema
    except _UNREADABLE as error:
        msg = f"{path}: expected a manifest with a schema, got: {error}"
        raise ResultsError(msg) from error
    if schema != SCHEMA:
        msg = f"{path}: expected schema '{SCHEMA}', got '{schema}'; read it with the version of enginecmp that wrote it"
        raise ResultsError(msg)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except _UNREADABLE as error:
        msg = f"{path}: not a manifest of '{SCHEMA}': {error}"
        raise ResultsError(msg) from error
    labels = [engine.name for engine in manifest.engines]
    if len(set(labels)) != len(labels):
        msg = f"{path}: expected every engine label once, got {', '.join(labels)}"
        raise ResultsError(msg)
    _rename(manifest)
    return manifest


def _rename(manifest: Manifest) -> None:
    """Put today's names in place of those that earlier versions wrote."""
    if "spare_requests" in manifest.scenario:
        manifest.scenario["replacement_requests"] = manifest.scenario.pop("spare_requests")
    for engine in manifest.engines:
        if engine.options.get("batching") == "own":
            engine.options["batching"] = "continuous"


def finished_launches(folder: Path) -> list[LaunchRecord]:
    """Return the launches that are over, in their order; a torn last line counts as not written."""
    return list(whole_lines(folder / LAUNCHES, LaunchRecord))


def whole_lines(path: Path, kind: Any) -> Iterator[Any]:
    """Yield each line of a JSON lines file as `kind`; a last line without its end is left out.

    Raises:
        ResultsError: it cannot be read, or a line is no `kind`; names file and line.
    """
    decoder = msgspec.json.Decoder(kind)
    try:
        for number, line in enumerate(read_lines(path), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except _UNREADABLE as error:
                msg = f"{path}:{number}: {error}"
                raise ResultsError(msg) from error
    except FileNotFoundError:
        return
