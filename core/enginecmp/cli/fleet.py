"""`cmp run --on WHERE`: whole runs on other machines, collected in one folder, with one report of all of them.

Each run is an ordinary `cmp run` with all its blocks on one node, so pairing and clock never cross machines. A run
that is made on several nodes is made whole on each, with a seed of its own. fleet.json says how far every run came:
`cmp run --resume FOLDER` goes on with what is left.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from enginecmp.cli.console import say
from enginecmp.cli.fleet_table import showing
from enginecmp.cli.matrix import model_of, names_of
from enginecmp.cli.measure import resume_command
from enginecmp.cli.several import hold, keep, require_inside, tell, tell_left
from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.documents import MOST_BYTES, named_by_user, read_json
from enginecmp.format.streams import open_regular
from enginecmp.placement.node import RUN, Node, lacking, read_require
from enginecmp.placement.placement import Placement, find_placement
from enginecmp.placement.schedule import Job, Schedule
from enginecmp.placement.visit import Needed
from enginecmp.results.writer import ResultsFolder
from enginecmp.run.manifest import new_run_id
from enginecmp.run.options import RunOptions
from enginecmp.run.prepare import model_for
from enginecmp.run.suite import Part, read_suite
from enginecmp.types import ModelInfo

FLEET = "fleet.json"
SCHEMA = "enginecmp-fleet/1"


class FleetState(msgspec.Struct, kw_only=True):
    """fleet.json: what a fleet measures, and how far it came.

    Attributes:
        schema: "enginecmp-fleet/1".
        on: value of --on.
        require: value of --require.
        jobs: in the order in which they were asked for.
    """

    schema: str = SCHEMA
    on: str
    require: str = ""
    jobs: list[Job]


def start_fleet(options: RunOptions, on: str) -> int:
    """Place what the options ask for on the nodes of a placement; return 0, or 1 when a run failed.

    Raises:
        UsageError: a name, a file or a node that does not exist.
    """
    given = msgspec.structs.replace(options, on=None, nodes=None, require=None, suite=None, seed=options.chosen_seed())
    parts = _parts(options, given)
    placement, nodes = find_placement(on)
    try:
        fit = _fitting(nodes, options.require or "", on)
        copies = options.nodes or len(fit)
        if copies > len(fit):
            msg = f"--nodes {copies}: expected as many nodes that fit, got {len(fit)}: {', '.join(n.name for n in fit)}"
            raise UsageError(msg)
        folder = options.out / new_run_id("fleet")
        jobs = [
            job
            for number, (part, model) in enumerate(parts)
            for job in _jobs(f"{folder.name}-{number}", part, model, copies)
        ]
        say(f"runs: {len(parts)}, each on {copies} of {len(fit)} nodes; seed {given.seed}:")
        for part, model in parts:
            say(f"  {part.name}: {model.name}")
        for node in fit:
            say(f"  node {node.name}: {', '.join(f'{k}={v}' for k, v in node.labels.items()) or 'no labels'}")
        if options.dry_run:
            return 0
        with ResultsFolder(options.out):
            folder.mkdir()
            state = FleetState(on=on, require=options.require or "", jobs=jobs)
            return _run(folder, state, placement, fit, options)
    finally:
        placement.close()


def is_fleet(folder: Path) -> bool:
    """Return whether a folder is that of a fleet."""
    return (folder / FLEET).is_file()


def resume_fleet(options: RunOptions, folder: Path) -> int:
    """Go on with a fleet: runs that failed or never began run (again), one that was cut off goes on.

    Raises:
        ResultsError: fleet.json is not what it should be.
    """
    path = folder / FLEET
    state: FleetState = read_json(path, FleetState)
    for job in state.jobs:
        if not RUN.fullmatch(job.name):
            msg = f"{path}: expected the name of a job, got '{job.name}'"
            raise ResultsError(msg)
        for run in job.runs:
            require_inside(path, f"job {job.name}", run)
    left = [f"{job.part}{f' on {job.node}' if job.node else ''}" for job in state.jobs if job.status != "complete"]
    tell_left(folder, left)
    if options.dry_run:
        return 0
    with hold(folder):
        if not left:
            return _tell(folder, state, options)
        state.on = options.on or state.on
        placement, nodes = find_placement(state.on)
        try:
            return _run(folder, state, placement, _fitting(nodes, state.require, state.on), options)
        finally:
            placement.close()


def _parts(options: RunOptions, given: RunOptions) -> list[tuple[Part, ModelInfo]]:
    """Return every run that is asked for with its model; both are looked at before anything is placed.

    Raises:
        UsageError: a model cannot be sent: it is a folder, or several files.
    """
    if options.suite is not None:
        found = [(part, model_for(part.options)) for part in read_suite(options.suite, given)[1]]
    elif options.matrix is not None:
        one = msgspec.structs.replace(given, matrix=None)
        models = [model_of(name) for name in names_of(options.matrix)]
        found = [(Part(model.name, one), model) for model in models]
    else:
        found = [(Part(Path(options.scenario).stem, given), model_for(options))]
    for _, model in found:
        if model.parts or model.hf_folder:
            msg = f"--on: {model.name}: expected a model in one GGUF file, got a folder or several files; merge them"
            raise UsageError(msg)
    return found


def _jobs(name: str, part: Part, model: ModelInfo, copies: int) -> list[Job]:
    """Return one run, as many times as there shall be nodes that make it.

    Raises:
        UsageError: its scenario's file cannot be read.
    """
    files = [Needed(str(Path(model.path).absolute()), model.sha256)]
    own = msgspec.structs.replace(part.options, model="{0}", out=RunOptions().out, as_json=False)
    if own.scenario.endswith(".toml"):
        scenario = Path(own.scenario).absolute()
        with named_by_user("scenario", scenario), open_regular(scenario, MOST_BYTES) as file:
            files.append(Needed(str(scenario), hashlib.file_digest(file, "sha256").hexdigest()))
        own = msgspec.structs.replace(own, scenario="{1}")
    found = []
    for copy in range(copies):
        # Each node draws its own orders and prompts: what is alike on all of them is the plan.
        seeded = msgspec.structs.replace(own, seed=((own.seed or 0) + 7919 * copy) % 2**31)
        # The first two words are the command itself.
        words = seeded.words()[2:]
        found.append(Job(name=f"{name}-{copy}", part=part.name, words=words, files=files, sha256=model.sha256))
    return found


def _fitting(nodes: list[Node], require: str, on: str) -> list[Node]:
    """Return the nodes that have what is required.

    Raises:
        UsageError: none has; says what each lacks.
    """
    wanted = read_require(require)
    lacks = {node.name: lacking(node, wanted) for node in nodes}
    fit = [node for node in nodes if not lacks[node.name]]
    if not fit:
        told = "; ".join(f"{name}: {why}" for name, why in list(lacks.items())[:3])
        msg = f"--on {on} --require {require}: no node fits: {told}"
        raise UsageError(msg)
    return fit


def _run(folder: Path, state: FleetState, placement: Placement, nodes: list[Node], options: RunOptions) -> int:
    keep(folder / FLEET, state)
    with showing(state.jobs) as shown:

        def changed(job: Job) -> None:
            keep(folder / FLEET, state)
            shown.changed(job)

        try:
            Schedule(placement, nodes, state.jobs, folder, changed, shown.said).run()
        except KeyboardInterrupt:
            keep(folder / FLEET, state)
            say(f"interrupted; everything finished is kept: {resume_command(folder)}")
            raise
    return _tell(folder, state, options)


def _tell(folder: Path, state: FleetState, options: RunOptions) -> int:
    runs = [folder / job.runs[-1] for job in state.jobs if job.status == "complete" and job.runs]
    parts = {f"{job.part} on {job.node or 'no node'}": (job.status, job.error) for job in state.jobs}
    return tell(folder, runs, parts, {"fleet": state}, options.as_json)
