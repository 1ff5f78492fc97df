"""`cmp run --suite FILE`: several scenarios or settings one after the other, and one report of all of them.

A suite has a folder of its own with all its runs in it, so that `cmp stats FOLDER` reads them together, and suite.json,
which says how far it came: `cmp run --resume FOLDER` goes on with what is left.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Literal

import click
import msgspec

from enginecmp.cli.conflicts import check_run
from enginecmp.cli.console import say
from enginecmp.cli.measure import Prepared, measure, prepare, resume_command
from enginecmp.cli.several import hold, keep, require_inside, tell, tell_left
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.documents import read_json
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import read_manifest
from enginecmp.results.writer import ResultsFolder
from enginecmp.run.estimate import duration
from enginecmp.run.manifest import new_run_id
from enginecmp.run.options import RunOptions
from enginecmp.run.probe import AskedOnce
from enginecmp.run.suite import NOT_OF_A_PART, Part, read_suite
from enginecmp.run.summary import headline

SUITE = "suite.json"
SCHEMA = "enginecmp-suite/1"

Progress = Literal["waiting", "running", "complete", "failed"]


class PartState(msgspec.Struct, kw_only=True):
    """How far one part of a suite came.

    Attributes:
        name: of the part.
        options: fields of `RunOptions` that are not the default.
        status: waiting, running (also where it was cut off), complete or failed.
        folder: name of its run inside the suite's folder; empty before it began.
        error: why it failed; empty otherwise.
    """

    name: str
    options: dict[str, object]
    status: Progress = "waiting"
    folder: str = ""
    error: str = ""


class SuiteState(msgspec.Struct, kw_only=True):
    """suite.json: what a suite is made of, and how far it came.

    Attributes:
        schema: "enginecmp-suite/1".
        name: of the suite.
        parts: in the order in which they run.
    """

    schema: str = SCHEMA
    name: str
    parts: list[PartState]


def start_suite(options: RunOptions, file: Path, command: click.Command) -> int:
    """Run every part of a suite file, and report all of them; return 0, or 1 when a part failed.

    Every part is prepared before the first launch, so that a wrong name costs no measurement.

    Args:
        options: those beside --suite.
        file: the suite.
        command: `cmp run`, which says what a part may ask.

    Raises:
        UsageError: the file, or an option of a part, is wrong.
    """
    given = msgspec.structs.replace(options, suite=None, seed=options.chosen_seed())
    name, parts = read_suite(file, given)
    for part in parts:
        _require_takeable(part, command)
    once = AskedOnce()
    ready = [(part, _prepared(part, once)) for part in parts]
    say(f"suite {name}: {len(parts)} parts, seed {given.seed}, {_takes([p for _, p in ready])}:")
    for number, (part, prepared) in enumerate(ready, start=1):
        say(f"  {number}. {part.name}: {headline(prepared.request)}; about {duration(prepared.seconds)}")
    if options.dry_run:
        return 0
    with ResultsFolder(options.out):
        folder = options.out / new_run_id(f"suite-{name}")
        folder.mkdir()
        state = SuiteState(name=name, parts=[PartState(name=p.name, options=p.options.given()) for p in parts])
        keep(folder / SUITE, state)
        return _run(folder, state, options)


def is_suite(folder: Path) -> bool:
    """Return whether a folder is that of a suite."""
    return (folder / SUITE).is_file()


def resume_suite(options: RunOptions, folder: Path, command: click.Command) -> int:
    """Go on with a suite: parts that failed or never began run (again), one that was cut off goes on.

    Raises:
        ResultsError: suite.json is not what it should be.
    """
    path = folder / SUITE
    state: SuiteState = read_json(path, SuiteState)
    for part in state.parts:
        require_inside(path, f"part {part.name}", part.folder)
        if part.status != "complete":
            _require_takeable(Part(part.name, _options_of(part, path)), command)
    left = [part.name for part in state.parts if part.status != "complete"]
    tell_left(folder, left)
    if options.dry_run:
        return 0
    with hold(folder):
        return _run(folder, state, options)


def _run(folder: Path, state: SuiteState, options: RunOptions) -> int:
    for number, part in enumerate(state.parts, start=1):
        if part.status == "complete":
            continue
        say(f"part {number}/{len(state.parts)}: {part.name}")
        try:
            # With --json, stdout is for the one document at the end.
            with contextlib.redirect_stdout(sys.stderr if options.as_json else sys.stdout):
                _measure(folder, state, part, options)
            part.status, part.error = "complete", ""
        except KeyboardInterrupt:
            say(f"interrupted in part {part.name}; to go on: {resume_command(folder)}")
            raise
        except ResultsError:
            raise  # nothing can be written any more
        except CmpError as error:
            part.status, part.error = "failed", str(error)
            say(f"part {part.name} failed: {error}")
        keep(folder / SUITE, state)
    return _tell(folder, state, options)


def _measure(folder: Path, state: SuiteState, part: PartState, options: RunOptions) -> None:
    """Run one part, or go on with it where its run has begun."""
    run = folder / part.folder
    own = _options_of(part, folder / SUITE)
    own = msgspec.structs.replace(own, out=folder, no_sensors=own.no_sensors or options.no_sensors)
    if part.folder and (run / MANIFEST).exists():
        status = read_manifest(run).status
        if status == "complete" and not part.error:
            return
        if status != "complete":
            from enginecmp.cli.resume import resume

            resume(RunOptions(resume=run, out=folder, reference=own.reference, no_sensors=own.no_sensors), run)
            return
    prepared = _prepared(Part(part.name, own))
    part.status, part.folder = "running", new_run_id(prepared.request.scenario.name)
    keep(folder / SUITE, state)
    measure(own, prepared, part.folder)


def _options_of(part: PartState, path: Path) -> RunOptions:
    try:
        return RunOptions.of(part.options)
    except msgspec.ValidationError as error:
        msg = f"{path}: part {part.name}: {error}; start a new suite"
        raise ResultsError(msg) from error


def _require_takeable(part: Part, command: click.Command) -> None:
    """Hold the options of a part to what the command line takes: ranges, and what does not go together.

    Raises:
        UsageError: `cmp run` with these options would be refused.
    """
    own = [name for name in RunOptions.__struct_fields__ if name not in NOT_OF_A_PART]
    try:
        check_run(command.make_context("cmp run", part.options.words(own)[2:]))
    except (click.ClickException, UsageError) as error:
        told = error.format_message() if isinstance(error, click.ClickException) else str(error)
        msg = f"part {part.name}: {told}"
        raise UsageError(msg) from error


def _prepared(part: Part, once: AskedOnce | None = None) -> Prepared:
    try:
        prepared = prepare(part.options, once=once)
    except UsageError as error:
        msg = f"part {part.name}: {error}"
        raise UsageError(msg) from error
    if prepared.saved is not None:
        msg = f"part {part.name}: baseline = '{part.options.baseline}' is a saved run; name an engine of the part"
        raise UsageError(msg)
    return prepared


def _takes(prepared: list[Prepared]) -> str:
    return f"about {duration(sum(one.seconds for one in prepared))} and the gates"


def _tell(folder: Path, state: SuiteState, options: RunOptions) -> int:
    complete = [folder / part.folder for part in state.parts if part.status == "complete"]
    parts = {part.name: (part.status, part.error) for part in state.parts}
    return tell(folder, complete, parts, {"suite": state}, options.as_json)
