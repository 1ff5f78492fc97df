"""`cmp run`: measure engines against each other."""

from __future__ import annotations

import contextlib
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from enginecmp.cli.options import read_share
from enginecmp.errors import CmpError, ResultsError, UsageError
from enginecmp.plugins import Plugin
from enginecmp.scenarios import Scenario
from enginecmp.types import ModelInfo

_WAIT_LIMIT_SECONDS = 600.0


@click.command("run", short_help="Measure engines against each other.")
@click.option("--engines", default="all", show_default=True, help="all, or a,b, or label=engine,other=engine.")
@click.option("--scenario", "scenario_name", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", default="full", show_default=True, help="How much of the scenario: full or quick.")
@click.option("--model", "model_name", help="A catalog name or a GGUF file; see `cmp model list`.")
@click.option("--baseline", help="Engine that others are compared with, or a saved run.  [default: pytorch_baseline]")
@click.option("--save-baseline", metavar="NAME", help="Save the run under a name when it is complete.")
@click.option("--threads", default="auto", show_default=True, help="Compute threads; auto leaves the host a core.")
@click.option("--device", help="cpu, cuda, ...; each engine's default without it.")
@click.option("--blocks", type=click.IntRange(min=1), help="Launches per engine, instead of the profile's.")
@click.option("--adaptive", is_flag=True, help="Stop when precise enough; --blocks is then the most.  [4 × profile]")
@click.option("--precision", callback=read_share, default="2%", show_default=True, help="What --adaptive aims at.")
@click.option("--requests", type=click.IntRange(min=1), help="Measured requests per launch and cell.")
@click.option("-o", "options", multiple=True, metavar="ENGINE.KEY=VALUE", help="An option of one engine.")
@click.option("--deadline", "deadlines", multiple=True, metavar="PHASE=SECONDS", help="load, prefill, decode, score.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--seed", type=int, help="Of everything random; recorded in the manifest.  [default: drawn]")
@click.option("--no-gate", is_flag=True, help="Skip the equivalence gate; marks the run.")
@click.option("--reference", default="pytorch_baseline", show_default=True, help="Engine that the gate trusts.")
@click.option("--wait-idle", is_flag=True, help="Wait (up to 10 minutes) until the machine is idle.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Finish an interrupted run.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the time it will take.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def command(**arguments: Any) -> int:
    """Launch every engine many times in random order, and write down when each token came.

    Each engine is first held against a reference, then launched once per block in a process of its own. What is
    finished is on disk at any moment: Ctrl-C or a crash loses at most the request under way, and
    `cmp run --resume results/ID` goes on from there.

    With the name of a saved run as --baseline, the new run is compared with it afterwards; a confirmed critical
    regression exits with 3.
    """
    with _terminated_like_interrupted():
        return _resume(arguments) if arguments["resume"] is not None else _start(arguments)


def _start(arguments: dict[str, Any]) -> int:
    from enginecmp import run
    from enginecmp.baselines import check_name, engine_or_saved
    from enginecmp.estimate import duration, expected_seconds
    from enginecmp.plugins import discover
    from enginecmp.results import ResultsFolder

    plugins = discover()
    scenario = _scenario(arguments, plugins)
    seed = arguments["seed"] if arguments["seed"] is not None else secrets.randbelow(2**31)
    model = _model(arguments["model_name"])
    _check_context(scenario, model)
    request = _request(arguments, scenario, model, seed, plugins)
    labels = [contender.label for contender in request.contenders]
    if arguments["save_baseline"] is not None:
        check_name(arguments["save_baseline"], labels)
    request.baseline, saved = engine_or_saved(arguments["baseline"], labels, arguments["out"])
    if saved is not None:
        from enginecmp.cli.compare import check_conditions

        check_conditions(saved, run.new_manifest(request, "new"))
    seconds, basis = expected_seconds(scenario, model, request.contenders, arguments["out"])
    if arguments["dry_run"]:
        _print_plan(request, seconds, basis)
        return 0
    if request.reference is not None:
        request.exact = _exact(model)
    with ResultsFolder(arguments["out"]):
        folder = arguments["out"] / run.new_run_id(scenario.name)
        _say(f"{folder}: {_headline(request)}; about {duration(seconds)} and the gate ({basis})")
        _check_idle(arguments["wait_idle"])
        _execute(request, folder, None, arguments["as_json"])
        return _after(arguments, folder, saved)


def _after(arguments: dict[str, Any], folder: Path, saved: Path | None) -> int:
    """Save the finished run under the name asked for, compare it with a saved one, and return the exit code."""
    from enginecmp import baselines

    if arguments["save_baseline"] is not None:
        baselines.save(folder.parent, arguments["save_baseline"], folder)
        _say(f"saved as baseline '{arguments['save_baseline']}'")
    if saved is None:
        return 0
    from enginecmp.cli.compare import compare_with_saved

    return compare_with_saved(saved, folder, _say)


def _resume(arguments: dict[str, Any]) -> int:
    from enginecmp import run
    from enginecmp.baselines import check_name, engine_or_saved
    from enginecmp.launch import Contender
    from enginecmp.plugins import discover, find
    from enginecmp.results import ResultsFolder, read_manifest
    from enginecmp.selection import unfit

    folder: Path = arguments["resume"]
    with ResultsFolder(folder.parent):
        manifest = read_manifest(folder)
        if manifest.status == "complete":
            _say(f"{folder}: is complete, nothing to resume")
            return 0
        labels = [engine.name for engine in manifest.engines]
        if arguments["save_baseline"] is not None:
            check_name(arguments["save_baseline"], labels)
        _, saved = engine_or_saved(arguments["baseline"], labels, folder.parent)
        scenario = msgspec.convert(manifest.scenario, Scenario)
        model = _model(arguments["model_name"] or manifest.model.name)
        if model.sha256 != manifest.model.sha256:
            msg = (
                f"{folder}: was made with a file of SHA-256 {manifest.model.sha256[:12]}…, "
                f"{model.name} has {model.sha256[:12]}…; name the right file with --model"
            )
            raise ResultsError(msg)
        plugins = discover()
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
            contenders.append(Contender(engine.name, plugin, run.stored_options(engine)))
        request = run.RunRequest(
            scenario=scenario,
            model=model,
            contenders=contenders,
            baseline=manifest.baseline,
            seed=manifest.seed,
        )
        if scenario.gate and not manifest.equivalence:
            request.reference = find(arguments["reference"], plugins)
            request.exact = _exact(model)
        _say(f"{folder}: resuming: {_headline(request)}")
        _check_idle(arguments["wait_idle"])
        _execute(request, folder, manifest, arguments["as_json"])
        return _after(arguments, folder, saved)


def _execute(request: Any, folder: Path, manifest: Any, as_json: bool) -> None:
    from enginecmp import run

    try:
        if request.scenario.precision:
            request.enough = _precise_enough(request.scenario.precision)
        outcome = run.execute(request, folder, _say, manifest)
    except KeyboardInterrupt:
        _say(f"interrupted; everything finished is kept: cmp run --resume {folder}")
        raise
    for flag, count in sorted(outcome.flagged.items()):
        _say(f"{count} measured requests are flagged {flag} and left out by rule")
    for record in outcome.failed:
        _say(f"{record.launch}: {record.status}: {record.error}")
    if as_json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(outcome, enc_hook=str), indent=2) + b"\n")
    _say(f"done: {folder}; read it with: cmp stats {folder}")
    if len(outcome.given_up) == len(request.contenders):
        msg = f"no engine could be measured; the reasons are above and in {folder}"
        raise CmpError(msg)


def _precise_enough(precision: float) -> Callable[[Path], bool]:
    """Return the question that an adaptive run asks before each block: precision, never significance."""
    from enginecmp_analysis.load import load_runs
    from enginecmp_analysis.report import analyse
    from enginecmp_analysis.stopping import progress

    def enough(folder: Path) -> bool:
        found = progress(analyse(load_runs([str(folder)])).report.comparisons, precision)
        _say(f"precision ±{found.precision:.1%} after {found.launches} launches, wanted ±{precision:.1%}")
        return found.reached

    return enough


def _scenario(arguments: dict[str, Any], plugins: list[Plugin]) -> Scenario:
    from enginecmp.scenarios import change_deadlines, load_scenario

    scenario = load_scenario(arguments["scenario_name"], arguments["profile"], _plugin_scenarios(plugins))
    changes: dict[str, Any] = {"gate": not arguments["no_gate"]}
    if arguments["blocks"]:
        changes["blocks"] = arguments["blocks"]
    if arguments["requests"]:
        # A number of requests asks for that number: the time limit of the profile goes.
        changes |= {"requests": arguments["requests"], "seconds": None}
    if arguments["deadlines"]:
        changes["deadlines"] = change_deadlines(scenario.deadlines, arguments["deadlines"])
    if arguments["adaptive"]:
        changes |= {"precision": arguments["precision"], "blocks": arguments["blocks"] or 4 * scenario.blocks}
    return msgspec.structs.replace(scenario, **changes)


def _plugin_scenarios(plugins: list[Plugin]) -> list[str]:
    from enginecmp.plugins import load_object, manager_with

    found: list[str] = []
    for plugin in plugins:
        if plugin.error is None and plugin.here:
            for paths in manager_with(load_object(plugin.module)).hook.cmp_scenarios():
                found += [str(path) for path in paths]
    return found


def _request(arguments: dict[str, Any], scenario: Scenario, model: ModelInfo, seed: int, plugins: list[Plugin]) -> Any:
    from enginecmp.cli.engines import probe
    from enginecmp.plugins import find
    from enginecmp.run import RunRequest
    from enginecmp.selection import choose, parse_engines, parse_options, resolve_threads

    threads = resolve_threads(arguments["threads"])
    chosen = parse_engines(arguments["engines"], plugins)
    everything = arguments["engines"] == "all"
    if everything:
        for plugin in plugins:
            if plugin.error is not None:
                _say(f"left out: {plugin.name}: its plugin is broken: {plugin.error}")
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as logs:
        contenders = choose(
            chosen,
            model,
            everything=everything,
            device=arguments["device"],
            threads=threads,
            context_tokens=scenario.context_tokens,
            extra=parse_options(arguments["options"], chosen),
            probe=lambda plugin, device: probe(plugin, device, Path(logs)),
            say=_say,
        )
    reference = find(arguments["reference"], plugins) if scenario.gate else None
    return RunRequest(
        scenario=scenario, model=model, contenders=contenders, baseline="", seed=seed, reference=reference
    )


def _model(name: str | None) -> ModelInfo:
    from enginecmp.models.store import DEFAULT_MODEL, resolve

    return resolve(name or DEFAULT_MODEL, fetch=True)


def _exact(model: ModelInfo) -> ModelInfo:
    from enginecmp.models.store import exact_sibling

    return exact_sibling(model)


def _check_context(scenario: Scenario, model: ModelInfo) -> None:
    if scenario.context_tokens > model.context_tokens:
        msg = (
            f"scenario {scenario.name} needs {scenario.context_tokens} tokens of context, "
            f"{model.name} was made for {model.context_tokens}; choose shorter cells or another model"
        )
        raise UsageError(msg)


def _check_idle(wait: bool) -> None:
    """Warn before a run on a busy machine, or wait until it is idle."""
    from enginecmp.telemetry.idle import measure_busyness, wait_until_idle

    if wait:
        if not wait_until_idle(_WAIT_LIMIT_SECONDS, _say):
            msg = "the machine did not become idle within 10 minutes; stop what runs, or leave --wait-idle out"
            raise CmpError(msg)
        return
    now = measure_busyness()
    if now.busy:
        _say(f"warning: the machine is busy: {now.describe()}; samples will be flagged; --wait-idle waits")


def _headline(request: Any) -> str:
    scenario: Scenario = request.scenario
    labels = ", ".join(contender.label for contender in request.contenders)
    length = f"{scenario.seconds:g} s" if scenario.seconds else f"{scenario.requests} requests"
    threads = request.contenders[0].options.threads
    return (
        f"{labels} on {request.model.name}, {scenario.name}/{scenario.profile}, "
        f"{scenario.blocks} blocks × {length}, {threads} thread{'s' if threads > 1 else ''}"
    )


def _print_plan(request: Any, seconds: float, basis: str) -> None:
    from enginecmp.estimate import duration
    from enginecmp.plan import plan_launches

    scenario: Scenario = request.scenario
    click.echo(_headline(request))
    click.echo(f"seed {request.seed}, baseline {request.baseline}, gate {'on' if scenario.gate else 'off'}")
    for cell in scenario.cells:
        click.echo(f"cell: prompt {cell.prompt_tokens} tokens, output {cell.output_tokens} tokens")
    plan = plan_launches([contender.label for contender in request.contenders], scenario.blocks, request.seed)
    for block in range(scenario.blocks):
        order = "  ".join(planned.engine for planned in plan if planned.block == block)
        click.echo(f"block {block + 1:>3}: {order}")
    click.echo(f"about {duration(seconds)} of launches ({basis}), and the gate before them")


def _say(line: str) -> None:
    """Print one line on stderr; called only while no engine is being measured."""
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run the way Ctrl-C does: worker killed, manifest valid."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
