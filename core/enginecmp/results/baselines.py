"""Runs that were given a name, so that later runs can be compared with them: `<results>/baselines.json`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from enginecmp.errors import ResultsError, UsageError, did_you_mean, meant
from enginecmp.format.documents import read_json
from enginecmp.format.files import MANIFEST
from enginecmp.results.files import write_atomically

BASELINES = "baselines.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


def check_name(name: str, labels: Sequence[str] = ()) -> None:
    """Refuse a name that could not be used later.

    Args:
        name: for a run that is to be saved.
        labels: engines of that run; `--baseline` would take their names for engines.

    Raises:
        UsageError: it has other letters than file names should, or is the label of an engine.
    """
    if not _NAME.fullmatch(name):
        msg = f"--save-baseline '{name}': a name may hold letters, digits and . _ + - only"
        raise UsageError(msg)
    if name in labels:
        msg = f"--save-baseline {name}: is an engine of this run, so --baseline would never find it; take another name"
        raise UsageError(msg)


def names(results: Path) -> dict[str, str]:
    """Return the saved names of a results folder and the run id of each; empty when nothing was saved.

    Raises:
        ResultsError: the file is not a JSON object of names and run ids.
    """
    path = results / BASELINES
    try:
        saved: dict[str, str] = read_json(path, dict[str, str])
    except FileNotFoundError:
        return {}
    except ResultsError as error:
        got = str(error).removeprefix(f"{path}: ")
        msg = f"{path}: expected names and run ids as JSON, got: {got}; fix or remove it"
        raise ResultsError(msg) from error
    return saved


def save(results: Path, name: str, run: Path) -> None:
    """Give a run a name; a name that was in use moves.

    Args:
        results: folder of runs; only its holder may call this (`ResultsFolder`).
        name: checked by `check_name`.
        run: folder of the run, inside `results`.

    Raises:
        ResultsError: the run is not in `results`, or the file cannot be written.
    """
    if run.resolve().parent != results.resolve():
        msg = f"{run}: is not in {results}; only runs of that folder can be its baselines"
        raise ResultsError(msg)
    content = {**names(results), name: run.resolve().name}
    write_atomically(results / BASELINES, msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")


def find(results: Path, name: str) -> Path:
    """Return the folder of a saved run.

    Raises:
        UsageError: no run was saved under that name.
        ResultsError: the run is gone.
    """
    known = names(results)
    name = meant(name, known)
    if name not in known:
        saved = did_you_mean(name, known) if known else "; save one with `cmp run --save-baseline NAME`"
        msg = f"'{name}' is no path, and there is no saved baseline '{name}' in {results}{saved}"
        raise UsageError(msg)
    folder = results / known[name]
    if Path(known[name]).name != known[name]:
        msg = f"{results / BASELINES}: '{name}': expected the id of a run in {results}, got '{known[name]}'; remove it"
        raise ResultsError(msg)
    if not (folder / MANIFEST).is_file():
        msg = f"baseline '{name}' is run {known[name]}, which is no longer in {results}; save another one"
        raise ResultsError(msg)
    return folder


def engine_or_saved(asked: str | None, labels: Sequence[str], results: Path) -> tuple[str, Path | None]:
    """Say what `cmp run --baseline` means: an engine of the run, or else a saved run to compare with afterwards.

    Args:
        asked: value of the option.
        labels: engines of the run.
        results: folder of runs.

    Returns:
        Label of the engine that others are compared with, and the saved run's folder if one was asked for.

    Raises:
        UsageError: neither an engine of this run nor a saved run has that name.
        ResultsError: the saved run is gone.
    """
    default = "pytorch_baseline" if "pytorch_baseline" in labels else labels[0]
    if asked is None:
        return default, None
    known = names(results)
    asked = meant(asked, labels if asked in labels or asked not in known else known)
    if asked in labels:
        return asked, None
    asked = meant(asked, known)
    if asked not in known:
        saved = f"saved baselines: {', '.join(sorted(known))}" if known else "no baseline is saved there"
        msg = (
            f"--baseline {asked}: not in this run, which has {', '.join(labels)}, and not a saved run of {results} "
            f"({saved}){did_you_mean(asked, [*labels, *known]) if known else ''}"
        )
        raise UsageError(msg)
    return default, find(results, asked)
