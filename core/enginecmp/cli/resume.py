"""`cmp run --resume`: finish what was cut off, with what the manifest says and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.cli.console import say
from enginecmp.cli.measure import after, execute
from enginecmp.cli.prepare import by_what_is_timed, check_idle, exact_of, find_model, headline
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.plugins import Plugin, discover, find
from enginecmp.results import MANIFEST, ResultsFolder, read_manifest
from enginecmp.types import Manifest, ModelInfo

if TYPE_CHECKING:
    from enginecmp.contender import Contender


def resume(arguments: dict[str, Any]) -> int:
    """Go on with a run, then save it or compare it as asked, and return the exit code.

    Raises:
        ResultsError: it is no run, or was made with another file or another version of an engine.
        CmpError: an engine of it cannot be loaded any more.
    """
    from enginecmp.baselines import check_name, engine_or_saved
    from enginecmp.run_request import RunRequest
    from enginecmp.scenarios import Scenario

    folder: Path = arguments["resume"]
    if folder.name in ("", ".."):
        folder = folder.resolve()  # "." has no folder of runs above it that could be named
    _require_run(folder)
    with ResultsFolder(folder.parent):
        manifest = read_manifest(folder)
        labels = [engine.name for engine in manifest.engines if engine.options.get("timed", True)]
        if arguments["save_baseline"] is not None:
            check_name(arguments["save_baseline"], labels)
        _, saved = engine_or_saved(arguments["baseline"], labels, folder.parent)
        if manifest.status == "complete":
            say(f"{folder}: is complete, nothing to resume")
            return after(arguments, folder, saved)
        try:
            scenario = msgspec.convert(manifest.scenario, Scenario)
        except msgspec.ValidationError as error:
            msg = f"{folder / MANIFEST}: scenario: {error}; start a new run"
            raise ResultsError(msg) from error
        model = _model_of(folder, manifest, arguments["model_name"])
        plugins = discover()
        contenders, untimed = by_what_is_timed(_contenders(folder, manifest, model, plugins))
        request = RunRequest(
            scenario=scenario,
            model=model,
            contenders=contenders,
            untimed=untimed,
            baseline=manifest.baseline,
            seed=manifest.seed,
            sensors=not arguments["no_sensors"],
        )
        if scenario.gate and not manifest.equivalence:
            request.reference = find(arguments["reference"], plugins)
            request.exact = exact_of(model)
        say(f"{folder}: resuming: {headline(request)}")
        check_idle(arguments["wait_idle"])
        execute(request, folder, manifest, arguments["as_json"])
        return after(arguments, folder, saved)


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


def _model_of(folder: Path, manifest: Manifest, asked: str | None) -> ModelInfo:
    """Return the file that a run was made with.

    Raises:
        ResultsError: it is another one, or was a file of the user's that only they can name.
    """
    wanted = manifest.model
    try:
        model = find_model(asked or wanted.name)
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


def _contenders(folder: Path, manifest: Manifest, model: ModelInfo, plugins: list[Plugin]) -> list[Contender]:
    """Return the engines of a run as they were, or refuse to mix them with others."""
    from enginecmp.manifest import stored_contender
    from enginecmp.selection import unfit

    contenders = []
    for engine in manifest.engines:
        plugin = find(engine.options.get("engine", engine.name), plugins)
        assert plugin.info is not None
        if plugin.info.version != engine.version:
            msg = (
                f"{folder}: was made with {engine.name} {engine.version}, installed is {plugin.info.version}; "
                "install that version again or start a new run"
            )
            raise ResultsError(msg)
        if reason := unfit(plugin, model):
            msg = f"{engine.name}: {reason}"
            raise CmpError(msg)
        contenders.append(stored_contender(engine, plugin))
    return contenders
