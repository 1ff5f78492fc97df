"""`cmp run --resume` and `--extend`: go on with a run, with what its manifest says and nothing else."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from enginecmp.cli.console import echo, say
from enginecmp.cli.measure import after, execute, require_result
from enginecmp.cli.objects import kept_there
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.files import MANIFEST
from enginecmp.format.readers import finished_launches, read_manifest
from enginecmp.format.records import Manifest, RunEngine
from enginecmp.plugins.discovery import discover, find
from enginecmp.plugins.plugin import Plugin
from enginecmp.results.writer import ResultsFolder
from enginecmp.run.options import RunOptions
from enginecmp.run.outcome import without_result
from enginecmp.run.prepare import by_what_is_timed, check_idle, exact_of, find_model
from enginecmp.run.request import RunRequest, read_again
from enginecmp.run.summary import headline, launches_left, plan_lines
from enginecmp.types import ModelInfo, Probe

if TYPE_CHECKING:
    from enginecmp.launch.engine_config import EngineConfig


def resume(options: RunOptions, folder: Path) -> int:
    """Go on with a run, then save it or compare it as asked, and return the exit code.

    Args:
        options: those that go with --resume.
        folder: of the run.

    Raises:
        ResultsError: it is no run, or was made with another file or another version of an engine.
        CmpError: an engine of it cannot be loaded any more.
    """
    return _go_on(options, folder, longer=None)


def extend(options: RunOptions, folder: Path | None) -> int:
    """Add blocks to a run, complete or not: the same plan, the next numbers, the same conditions.

    Args:
        options: those that go with --extend.
        folder: of the run.

    Raises:
        ResultsError: as `resume`; or machine, engines or program are not what they were.
        CmpError: an engine of it cannot be loaded any more.
    """
    assert folder is not None

    def longer(manifest: Manifest, folder: Path) -> int:
        planned = manifest.scenario.get("blocks") or 0
        begun = 1 + max((record.block for record in finished_launches(folder)), default=-1)
        if not planned:
            msg = f"{folder}: is of the gate alone, so there is nothing to extend; start a new run"
            raise ResultsError(msg)
        wanted = options.blocks or max(planned, begun) + (options.more_blocks or 0)
        if wanted <= begun:
            msg = f"{folder}: has {begun} blocks already, --blocks {wanted} adds none; try --blocks +{LAUNCHES_NEEDED}"
            raise UsageError(msg)
        return wanted

    return _go_on(options, folder, longer)


def _go_on(options: RunOptions, folder: Path, longer: Callable[[Manifest, Path], int] | None) -> int:
    """Go on with a run; `longer` says how many blocks it shall have, None leaves it as it was planned."""
    from enginecmp.results.baselines import check_name, engine_or_saved
    from enginecmp.scenarios import Scenario
    from enginecmp.scenarios.ranges import outside

    if folder.name in ("", ".."):
        folder = folder.resolve()  # "." has no folder of runs above it that could be named
    _require_run(folder)
    options, model_path = _as_asked(options, folder)
    # What is only told needs no lock, and no right to write.
    with contextlib.nullcontext() if options.dry_run else ResultsFolder(folder.parent):
        manifest = read_manifest(folder)
        labels = [engine.name for engine in manifest.engines if engine.options.get("timed", True)]
        if options.save_baseline is not None:
            check_name(options.save_baseline, labels)
        _, saved = engine_or_saved(options.baseline, labels, folder.parent)
        blocks = longer(manifest, folder) if longer else None
        if manifest.status == "complete" and blocks is None:
            say(f"{folder}: is complete, nothing to resume")
            if options.dry_run:
                return 0
            with kept_there(options, folder):
                pass  # what is whole here is uploaded
            require_result(without_result(folder, labels), len(labels), folder)
            return after(options, folder, saved)
        try:
            scenario = msgspec.convert(manifest.scenario, Scenario)
        except msgspec.ValidationError as error:
            msg = f"{folder / MANIFEST}: scenario: {error}; start a new run"
            raise ResultsError(msg) from error
        for expected, came in outside(scenario):
            msg = f"{folder / MANIFEST}: scenario: expected {expected}, got {came}; start a new run"
            raise ResultsError(msg)
        model = _model_of(folder, manifest, options.model, model_path)
        plugins = discover()
        configs, untimed = by_what_is_timed(_configs(folder, manifest, model, plugins), say)
        request = RunRequest(
            scenario=scenario,
            model=model,
            configs=configs,
            untimed=untimed,
            baseline=manifest.baseline,
            baseline_chosen=manifest.baseline != engine_or_saved(None, labels, folder.parent)[0],
            seed=manifest.seed,
            sensors=not options.no_sensors,
        )
        if blocks is not None:
            _check_conditions(folder, manifest, request)
            # How long it shall be is said by the number now, not by a precision.
            request.scenario = msgspec.structs.replace(
                scenario, blocks=blocks, max_extra=options.max_extra, precision=0.0
            )
            manifest.scenario |= {"blocks": blocks, "max_extra": options.max_extra}
        if scenario.gate and not manifest.equivalence:
            request.reference = find(options.reference, plugins)
            request.exact = exact_of(model)
        if options.dry_run:
            _show_plan(request, folder)
            return 0
        say(f"{folder}: {'resuming' if blocks is None else 'extending'}: {headline(request)}")
        check_idle(options.wait_idle, say)
        with kept_there(options, folder, request):
            execute(request, folder, manifest, options.as_json)
        return after(options, folder, saved)


def _show_plan(request: RunRequest, folder: Path) -> None:
    """Print the launches that a run still lacks, and how long they will take."""
    from enginecmp.run.estimate import left_seconds

    over = {record.key for record in finished_launches(folder)}
    left = launches_left(request, over)
    seconds, basis = left_seconds(request.scenario, request.model, request.configs, folder.parent, left)
    for line in plan_lines(request, seconds, basis, over):
        echo(line)


def _check_conditions(folder: Path, manifest: Manifest, request: RunRequest) -> None:
    """Refuse to put blocks beside others that were made under other conditions.

    Raises:
        ResultsError: model, machine, libraries or engines are not what they were.
    """
    from enginecmp.run.manifest import new_manifest
    from enginecmp_analysis.data.columns import ColumnBuilder
    from enginecmp_analysis.data.fingerprint import difference
    from enginecmp_analysis.data.load import Run

    now = new_manifest(request, manifest.run_id)
    now.scenario = manifest.scenario
    # What a run finds out of its machine only while it goes on.
    now.environment = {**manifest.environment, **now.environment}
    nothing = ColumnBuilder().build()
    gap = difference(Run(manifest, nothing), Run(now, nothing))
    if changed := [*gap.conditions, *gap.builds]:
        msg = f"{folder}: was made under other conditions: {'; '.join(changed[:3])}; start a new run under these"
        raise ResultsError(msg)


def _require_run(folder: Path) -> None:
    """Refuse what is no run's folder, before the folder of runs is taken, which would make it where there is none.

    Raises:
        ResultsError: it holds no readable manifest.
    """
    runs = [path.parent for path in folder.glob(f"*/{MANIFEST}")]
    if runs and not (folder / MANIFEST).exists():
        latest = max(runs, key=lambda run: run.name)
        msg = f"{folder}: is a folder of runs; name one of its {len(runs)}, the latest is {latest}"
        raise ResultsError(msg)
    read_manifest(folder)


def _as_asked(options: RunOptions, folder: Path) -> tuple[RunOptions, str]:
    """Return the options with what the run was started with where nothing else is asked for now, and its file's path.

    Raises:
        ResultsError: resume.json is not what it should be.
    """
    again = read_again(folder)
    if again is None:
        return options, ""
    default = RunOptions().reference
    filled = msgspec.structs.replace(
        options,
        reference=again.reference if options.reference == default else options.reference,
        no_sensors=options.no_sensors or not again.sensors,
        baseline=options.baseline or again.baseline,
        save_baseline=options.save_baseline or again.save_baseline,
    )
    return filled, again.model


def _model_of(folder: Path, manifest: Manifest, asked: str | None, path: str) -> ModelInfo:
    """Return the file that a run was made with: the one asked for, the one at its path, or the one of its name.

    Raises:
        ResultsError: it is another one, or was a file of the user's that only they can name.
    """
    wanted = manifest.model
    try:
        here = path if asked is None and os.path.exists(path) else None
        model = find_model(asked or here or wanted.name)
    except UsageError as error:
        if asked is not None:
            raise
        msg = f"{folder}: was made with the file {wanted.name}, SHA-256 {wanted.sha256[:12]}…; name it with --model"
        raise ResultsError(msg) from error
    if model.sha256 != wanted.sha256:
        msg = (
            f"{folder}: was made with a file of SHA-256 {wanted.sha256[:12]}…, "
            f"{model.name} has {model.sha256[:12]}…; name the right file with --model"
        )
        raise ResultsError(msg)
    return model


def _configs(folder: Path, manifest: Manifest, model: ModelInfo, plugins: list[Plugin]) -> list[EngineConfig]:
    """Return the engines of a run as they were, or refuse to mix them with others."""
    from enginecmp.run.manifest import stored_config
    from enginecmp.run.selection import is_label, unfit

    configs = []
    for engine in manifest.engines:
        if not is_label(engine.name):
            msg = f"{folder / MANIFEST}: engine '{engine.name}': expected letters, digits and . _ + = , - only"
            raise ResultsError(msg)
        plugin = find(engine.options.get("engine", engine.name), plugins)
        assert plugin.info is not None
        probed = _asked_again(engine, plugin)
        now = probed.version if probed else engine.version if plugin.info.remote else plugin.info.version
        if now != engine.version:
            msg = (
                f"{folder}: was made with {engine.name} {engine.version}, {'there' if probed else 'installed'} is "
                f"{now}; {'start' if probed else 'install'} that version again or start a new run"
            )
            raise ResultsError(msg)
        if reason := unfit(plugin, model):
            msg = f"{engine.name}: {reason}"
            raise CmpError(msg)
        configs.append(stored_config(engine, plugin, probed))
    return configs


def _asked_again(engine: RunEngine, plugin: Plugin) -> Probe | None:
    """Return what an engine that runs by itself says now; None of one that is started for each launch.

    Raises:
        CmpError: it does not answer any more.
    """
    from enginecmp.run.probe import probe

    if not engine.options.get("running"):
        return None
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as logs:
        found = probe(plugin, engine.device, Path(logs), engine.options.get("extra", {}))
    if not found.ok:
        msg = f"{engine.name}: cannot run here: {found.reason}{f'; fix: {found.fix}' if found.fix else ''}"
        raise CmpError(msg)
    return found
