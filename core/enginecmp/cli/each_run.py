"""The runs that paths name, one folder each, found by their manifests alone: thousands of them cost no memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginecmp.errors import ResultsError
from enginecmp.format.files import SAMPLES
from enginecmp.format.readers import read_manifest


def each_run(paths: Sequence[str | Path], *, strict: bool = False) -> tuple[list[Path], list[str]]:
    """Return the folders of all runs in the order of time, each run once, and what was left out.

    Args:
        paths: run folders or folders of runs.
        strict: refuse a manifest that cannot be read, instead of leaving its run out.

    Raises:
        ResultsError: a path holds no run; or see `strict`.
    """
    from enginecmp_analysis.data.load import find_runs

    found: dict[str, tuple[str, Path]] = {}
    notes: list[str] = []
    for folder in dict.fromkeys(folder for path in paths for folder in find_runs(Path(path))):
        try:
            manifest = read_manifest(folder)
        except ResultsError as error:
            if strict:
                raise
            notes.append(f"left out: {error}")
            continue
        if (other := found.get(manifest.run_id)) is not None:
            # Of a copy and a run that went on afterwards, the longer one is the whole run.
            long, short = sorted((folder, other[1]), key=_size, reverse=True)
            if long.resolve() != short.resolve():
                notes.append(f"left out: {short} holds the same run as {long}")
            found[manifest.run_id] = (manifest.created_utc, long)
        else:
            found[manifest.run_id] = (manifest.created_utc, folder)
    return [folder for _, (_, folder) in sorted(found.items(), key=lambda item: (item[1][0], item[0]))], notes


def _size(folder: Path) -> int:
    path = folder / SAMPLES
    return path.stat().st_size if path.is_file() else 0
