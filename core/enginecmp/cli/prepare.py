"""From the options of `cmp run` to what it will do: scenario, model, engines; and how that is told."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from enginecmp.cli.console import say
from enginecmp.errors import CmpError, UsageError
from enginecmp.plugins import Plugin
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.fit import describe
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    from enginecmp.contender import Contender
    from enginecmp.run_request import RunRequest

_WAIT_LIMIT_SECONDS = 600.0


def make_scenario(arguments: dict[str, Any], plugins: list[Plugin]) -> Scenario:
    """Return the scenario that the options ask for, profile and overrides applied.

    Raises:
        UsageError: unknown scenario or profile, or a wrong key in its file.
    """
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
    for key in ("score_positions", "max_kl", "max_nll_increase"):
        if arguments[key] is not None:
            changes[key] = arguments[key]
    if arguments["quality_only"]:
        return gate_only(msgspec.structs.replace(scenario, **changes))
    return msgspec.structs.replace(scenario, **changes)


def _plugin_scenarios(plugins: list[Plugin]) -> list[str]:
    from enginecmp.plugins import load_object, manager_with

    found: list[str] = []
    for plugin in plugins:
        if plugin.error is None and plugin.here:
            for paths in manager_with(load_object(plugin.module)).hook.cmp_scenarios():
                found += [str(path) for path in paths]
    return found


def choose_seed(arguments: dict[str, Any]) -> int:
    """Return the seed that was asked for, or draw one."""
    seed: int | None = arguments["seed"]
    return secrets.randbelow(2**31) if seed is None else seed


def make_request(
    arguments: dict[str, Any], scenario: Scenario, model: ModelInfo, seed: int, plugins: list[Plugin]
) -> RunRequest:
    """Return what will run: the engines that were asked for and can run here, with their options.

    The baseline is still to be chosen.

    Raises:
        CmpError: an engine that was named cannot run, or none can.
    """
    from enginecmp.cli.engines import probe
    from enginecmp.plugins import find
    from enginecmp.run_request import RunRequest
    from enginecmp.selection import (
        choose,
        implied_options,
        parse_devices,
        parse_engines,
        parse_options,
        resolve_threads,
    )

    threads = resolve_threads(arguments["threads"])
    chosen = parse_engines(arguments["engines"], plugins)
    extra = parse_options([*implied_options(arguments["engines"]), *arguments["options"]], chosen)
    if arguments["matrix"]:
        chosen = _fitting(chosen, model)
    everything = arguments["engines"] == "all"
    if everything:
        for plugin in plugins:
            if plugin.error is not None:
                say(f"left out: {plugin.name}: its plugin is broken: {plugin.error}")
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as logs:
        contenders = choose(
            chosen,
            model,
            everything=everything,
            devices=parse_devices(arguments["device"], chosen),
            threads=threads,
            context_tokens=scenario.context_tokens,
            needs=scenario.needs,
            concurrency=scenario.concurrency,
            extra=extra,
            probe=lambda plugin, device, given: probe(plugin, device, Path(logs), given),
            say=say,
        )
    contenders, untimed = by_what_is_timed(contenders)
    if not contenders:
        scenario = gate_only(scenario)
    if arguments["tuned"] != "default":
        from enginecmp.tune.apply import with_tuned

        given = {label: set(options) for label, options in extra.items()}
        if arguments["threads"] != "auto":
            given = {label: {*options, "threads"} for label, options in given.items()}
        contenders = with_tuned(
            contenders, model, both=arguments["tuned"] == "both", everything=everything, given=given, say=say
        )
    reference = find(arguments["reference"], plugins) if scenario.gate else None
    return RunRequest(
        scenario=scenario,
        model=model,
        contenders=contenders,
        untimed=untimed,
        baseline="",
        seed=seed,
        reference=reference,
        sensors=not arguments["no_sensors"],
    )


def by_what_is_timed(contenders: list[Contender]) -> tuple[list[Contender], list[Contender]]:
    """Return the engines that will be timed, and those that only the gate looks at; the latter are told."""
    untimed = [contender for contender in contenders if not contender.timed]
    for contender in untimed:
        say(f"{contender.label}: not timed: device {contender.options.device} proves what is computed, not how fast")
    return [contender for contender in contenders if contender.timed], untimed


def gate_only(scenario: Scenario) -> Scenario:
    """Return a scenario without anything that only launches need.

    Raises:
        UsageError: it has no gate, so nothing would be left.
    """
    if not scenario.gate:
        msg = "nothing to do: without the gate and without an engine to time; leave --no-gate out"
        raise UsageError(msg)
    return msgspec.structs.replace(scenario, blocks=0, offered_load=(), copy_bandwidth=False)


def _fitting(chosen: Mapping[str, Plugin], model: ModelInfo) -> dict[str, Plugin]:
    """Return the engines that can load a model of a matrix; the others are told."""
    from enginecmp.selection import unfit

    fitting = {}
    for label, plugin in chosen.items():
        if reason := unfit(plugin, model):
            say(f"left out of {model.name}: {label}: {reason}")
        else:
            fitting[label] = plugin
    return fitting


def find_model(name: str | None) -> ModelInfo:
    """Return the model of that name, fetched or derived where it is not here; the default one without a name."""
    from enginecmp.models.store import DEFAULT_MODEL, resolve

    return resolve(name or DEFAULT_MODEL, fetch=True)


def exact_of(model: ModelInfo) -> ModelInfo:
    """Return the float32 sibling of a model, for the gate."""
    from enginecmp.models.store import exact_sibling

    return exact_sibling(model)


def check_idle(wait: bool) -> None:
    """Warn before a run on a busy machine, or wait until it is idle."""
    from enginecmp.telemetry.idle import measure_busyness, wait_until_idle

    if wait:
        if not wait_until_idle(_WAIT_LIMIT_SECONDS, say):
            msg = "the machine did not become idle within 10 minutes; stop what runs, or leave --wait-idle out"
            raise CmpError(msg)
        return
    now = measure_busyness()
    if now.busy:
        say(f"warning: the machine is busy: {now.describe()}; samples will be flagged; --wait-idle waits")


def headline(request: RunRequest) -> str:
    """Return one line about a run."""
    scenario: Scenario = request.scenario
    labels = ", ".join(request.labels)
    if not scenario.blocks:
        return f"{labels} on {request.model.name}, quality only"
    length = f"{scenario.seconds:g} s" if scenario.seconds else _count(scenario.requests, "request")
    threads = _count(request.contenders[0].options.threads, "thread")
    blocks = _count(scenario.blocks, "block")
    return (
        f"{labels} on {request.model.name}, {scenario.name}/{scenario.profile}, {blocks} × {length}, {threads}"
        f"{_queueing(request)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _queueing(request: RunRequest) -> str:
    """Return which engines have no batching of their own, where that makes a difference."""
    if request.scenario.concurrency == 1:
        return ""
    queueing = [contender.label for contender in request.contenders if not contender.plugin.batches]
    if not queueing:
        return ""
    return f"; {' and '.join(queueing)} queue{'s' if len(queueing) == 1 else ''} requests first in, first out"


def print_plan(request: RunRequest, seconds: float, basis: str) -> None:
    """Print the order of all launches and how long they will take."""
    from enginecmp.estimate import duration
    from enginecmp.plan import plan_launches

    scenario: Scenario = request.scenario
    click.echo(headline(request))
    click.echo(f"seed {request.seed}, baseline {request.baseline}, gate {'on' if scenario.gate else 'off'}")
    for cell in scenario.cells:
        click.echo(f"cell: {describe(cell)}")
    if scenario.offered_load:
        loads = ", ".join(f"{load:g}" for load in scenario.offered_load)
        click.echo(f"sweep: {scenario.arrival} arrivals at {loads} × what one launch of each engine shows beforehand")
    cells = len(scenario.cells) if scenario.launch_per_cell else None
    plan = plan_launches([contender.label for contender in request.contenders], scenario.blocks, request.seed, cells)
    for block in range(scenario.blocks):
        order = "  ".join(planned.name.partition("-")[2] for planned in plan if planned.block == block)
        click.echo(f"block {block + 1:>3}: {order}")
    click.echo(
        f"about {duration(seconds)} of launches ({basis}){', and the gate before them' if scenario.gate else ''}"
    )
