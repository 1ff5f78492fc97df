"""How a run was asked for, as the file beside it keeps it."""

from __future__ import annotations

import shlex

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.format.documents import read_json
from enginecmp.format.files import RESUME
from enginecmp_analysis.data.load import Run


def kept_command(run: Run) -> list[str]:
    """Return the words of the command kept beside a run, without blocks, requests and seed.

    The file may be somebody else's: what is no `cmp run`, or more than one command, is not kept.

    Returns:
        `["cmp", "run", ...]`, each as the shell would hand it over; [] where there is none.
    """
    if run.path is None:
        return []
    try:
        kept = read_json(run.path / RESUME, _Kept)
        words = shlex.split(kept.command)
    except (FileNotFoundError, ResultsError, ValueError):
        return []
    return words if words[:2] == ["cmp", "run"] else []


class _Kept(msgspec.Struct):
    command: str = ""
