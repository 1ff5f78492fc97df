"""What a suite and a fleet share: a folder with many runs, a state file in it, and one report of all of them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from enginecmp.cli.console import echo, print_json, say, show
from enginecmp.cli.measure import resume_command
from enginecmp.errors import ResultsError
from enginecmp.format.text import command_line, operand, to_json
from enginecmp.results.files import write_atomically
from enginecmp.results.writer import ResultsFolder

REPORT = "report.html"


def keep(path: Path, state: Any) -> None:
    """Replace a state file.

    Raises:
        CmpError: it cannot be written.
    """
    write_atomically(path, to_json(state, indent=1) + b"\n")


def require_inside(path: Path, what: str, folder: str) -> None:
    """Refuse the name of a run that would lead out of its folder.

    Raises:
        ResultsError: names the file and what is wrong in it.
    """
    if folder in (".", "..") or "\0" in folder or Path(folder).name != folder:
        msg = f"{path}: {what}: expected the name of a run beside it, got '{folder}'"
        raise ResultsError(msg)


def tell_left(folder: Path, left: Sequence[str]) -> None:
    """Say what a suite or fleet will go on with."""
    say(f"{folder}: {'resuming: ' + ', '.join(left) if left else 'is complete, nothing to resume'}")


def hold(folder: Path) -> ResultsFolder:
    """Hold the folder of runs that a suite or fleet lies in; "." is inside that too, and is not held itself.

    Raises:
        FolderHeld: another run is writing into it.
        ResultsError: it cannot be written.
    """
    return ResultsFolder(folder.resolve().parent)


def tell(
    folder: Path, runs: Sequence[Path], parts: Mapping[str, tuple[str, str]], document: dict[str, Any], as_json: bool
) -> int:
    """Report everything that was measured: the page, the answer, and which part failed.

    Args:
        folder: of the suite or fleet.
        runs: folders of the runs that are complete.
        parts: name → status and error.
        document: what --json prints, beside the folder and the report.
        as_json: print that, and nothing else on stdout.

    Returns:
        0, or 1 when a part failed.
    """
    report = folder / REPORT if runs else None
    failed = any(status == "failed" for status, _ in parts.values())
    lines = _report(folder, runs) if runs else []
    if as_json:
        print_json({**document, "folder": str(folder), "report": str(report) if report else None})
        return 1 if failed else 0
    show(lines)
    for name, (status, error) in parts.items():
        echo(f"{name}: {status}{f': {error}' if error else ''}")
    if failed:
        echo(f"to run what failed again: {resume_command(folder)}")
    if report is not None:
        echo(f"report of all parts: {report}")
    return 1 if failed else 0


def _report(folder: Path, runs: Sequence[Path]) -> list[Any]:
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.decisions.decide import Questions, decide_more
    from enginecmp_analysis.judge.judge import Options
    from enginecmp_analysis.render.first_screen import first_screen
    from enginecmp_analysis.render.pictures.page import to_page

    chosen = Options()
    analysis = analyse(load_runs(runs), chosen)
    decide_more(analysis, chosen, Questions())
    write_atomically(folder / REPORT, to_page(analysis, chosen.margin).encode())
    shown = command_line(["cmp", "stats", operand(folder)])
    return list(first_screen(analysis, shown, shutil.get_terminal_size().columns))
