"""From a prepared run to what a user is told of it: what `cmp run`, `--matrix` and `--resume` have in common."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.cli.console import say
from enginecmp.cli.prepare import check_idle, exact_of, headline
from enginecmp.errors import CmpError

if TYPE_CHECKING:
    from enginecmp.run_request import RunRequest
    from enginecmp.types import Manifest


def measure(arguments: dict[str, Any], request: RunRequest, seconds: float, basis: str) -> Path:
    """Run what was prepared, in a new folder, and return that folder.

    Args:
        arguments: values of the options.
        request: from `make_request`, with its baseline.
        seconds: how long the launches will take.
        basis: what that rests on.
    """
    from enginecmp.estimate import duration
    from enginecmp.manifest import new_run_id
    from enginecmp.results import ResultsFolder

    if request.reference is not None:
        request.exact = exact_of(request.model)
    with ResultsFolder(arguments["out"]):
        folder: Path = arguments["out"] / new_run_id(request.scenario.name)
        gate = " and the gate" if request.reference is not None else ""
        takes = f"about {duration(seconds)}{gate} ({basis})" if request.scenario.blocks else "the gate alone"
        say(f"{folder}: {headline(request)}; {takes}")
        if request.scenario.blocks:
            check_idle(arguments["wait_idle"])
        execute(request, folder, None, arguments["as_json"])
    return folder


def after(arguments: dict[str, Any], folder: Path, saved: Path | None) -> int:
    """Save the finished run under the name asked for, compare it with a saved one, and return the exit code."""
    from enginecmp import baselines

    if arguments["save_baseline"] is not None:
        baselines.save(folder.parent, arguments["save_baseline"], folder)
        say(f"saved as baseline '{arguments['save_baseline']}'")
    if saved is None:
        return 0
    from enginecmp.cli.compare import compare_with_saved

    return compare_with_saved(saved, folder, say)


def execute(request: RunRequest, folder: Path, manifest: Manifest | None, as_json: bool) -> None:
    """Run and tell the outcome.

    Args:
        request: what to do.
        folder: of the run.
        manifest: of an earlier start of it, when resuming.
        as_json: print the outcome as JSON too.

    Raises:
        KeyboardInterrupt: after telling how to go on.
        CmpError: no engine could be measured.
    """
    from enginecmp import run

    try:
        if request.scenario.precision:
            request.enough = _precise_enough(request.scenario.precision)
        outcome = run.execute(request, folder, say, manifest)
    except KeyboardInterrupt:
        say(f"interrupted; everything finished is kept: cmp run --resume {folder}")
        raise
    if not request.scenario.blocks:
        from enginecmp.cli.quality_table import show_quality

        show_quality(folder, as_json)
        return
    for flag, count in sorted(outcome.flagged.items()):
        say(f"{count} measured requests are flagged {flag} and left out by rule")
    for record in outcome.failed:
        say(f"{record.launch}: {record.status}: {record.error}")
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(outcome, enc_hook=str), indent=2) + b"\n")
    say(f"done: {folder}; read it with: cmp stats {folder}")
    if len(outcome.given_up) == len(request.contenders):
        msg = f"no engine could be measured; the reasons are above and in {folder}"
        raise CmpError(msg)


def _precise_enough(precision: float) -> Callable[[Path], bool]:
    """Return the question that an adaptive run asks before each block: precision, never significance."""
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.report import analyse
    from enginecmp_analysis.statistics.stopping import progress

    def enough(folder: Path) -> bool:
        found = progress(analyse(load_runs([str(folder)])).report.comparisons, precision)
        say(f"precision ±{found.precision:.1%} after {found.launches} launches, wanted ±{precision:.1%}")
        return found.reached

    return enough


@contextlib.contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does: worker killed, manifest valid."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
