"""From the options of `cmp run` to what it will do: scenario, model, engines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import CmpError, UsageError
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.options import RunOptions
from enginecmp.scenarios import Scenario
from enginecmp.scenarios.find_max import MOST_USERS
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    from enginecmp.launch.engine_config import EngineConfig
    from enginecmp.run.probe import AskedOnce
    from enginecmp.run.request import RunRequest

_WAIT_LIMIT_SECONDS = 600.0


def make_scenario(options: RunOptions) -> Scenario:
    """Return the scenario that the options ask for, profile and overrides applied.

    Raises:
        UsageError: unknown scenario or profile, or a wrong key in its file or in a variant that a plugin reads.
    """
    from enginecmp.measure.judged import check_variants
    from enginecmp.plugins.brought import brought
    from enginecmp.scenarios import change_deadlines, load_scenario
    from enginecmp.scenarios.check import check

    found = brought()
    scenario = load_scenario(options.scenario, options.profile, found.scenarios, options.usual_profile, found.measures)
    check_variants(scenario)
    gate = scenario.needs_model and not options.no_gate
    changes: dict[str, Any] = {"gate": gate, "max_extra": options.max_extra}
    if options.blocks:
        changes["blocks"] = options.blocks
    if options.requests:
        # A number of requests asks for that number: the time limit of the profile goes.
        changes |= {"requests": options.requests, "seconds": None}
    changes |= decoding_changes(options, scenario)
    if options.deadlines:
        changes["deadlines"] = change_deadlines(scenario.deadlines, options.deadlines)
    if options.adaptive:
        changes |= {"precision": options.precision, "blocks": options.blocks or 4 * scenario.blocks}
    for key in ("score_positions", "max_kl", "max_nll_increase"):
        if getattr(options, key) is not None:
            changes[key] = getattr(options, key)
    scenario = msgspec.structs.replace(scenario, **changes)
    check(scenario, scenario.name)
    return gate_only(scenario) if options.quality_only else scenario


def decoding_changes(options: RunOptions, scenario: Scenario) -> dict[str, Any]:
    """Return what `--temperature`, `--top-k`, `--top-p`, `--stop-at-eos` and `--json-schema` change.

    One decoding for all cells; with a JSON Schema every cell comes twice, without and with it.

    Raises:
        UsageError: the scenario has decodings of its own, or does not measure requests; the schema cannot be read.
    """
    from enginecmp.scenarios.decoding import DecodingRule, read_schema

    given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    given = {key: value for key, value in given.items() if value is not None}
    flags = {"--stop-at-eos": options.stop_at_eos, "--json-schema": options.json_schema is not None}
    words = ", ".join([f"--{key.replace('_', '-')}" for key in given] + [flag for flag, on in flags.items() if on])
    if not words:
        return {}
    if scenario.kind != "requests" or scenario.decodings:
        own = "has [decodings] of its own: change its file"
        why = own if scenario.decodings else f"measures no requests ({scenario.kind})"
        msg = f"{words}: expected a scenario whose cells leave decoding open, {scenario.name} {why}"
        raise UsageError(msg)
    rule = DecodingRule(
        temperature=options.temperature or 0.0,
        top_k=options.top_k or 0,
        top_p=1.0 if options.top_p is None else options.top_p,
        stop_at_eos=options.stop_at_eos,
    )
    name = "+".join(["sampled"] * (rule.temperature > 0) + ["eos"] * rule.stop_at_eos) or "greedy"
    rules = {name: rule}
    if options.json_schema is not None:
        schema = read_schema(options.json_schema, "--json-schema")
        rules["json" if name == "greedy" else f"{name}+json"] = msgspec.structs.replace(rule, json_schema=schema)
    cells = tuple(msgspec.structs.replace(cell, decoding=each) for cell in scenario.cells for each in rules)
    changes: dict[str, Any] = {"decodings": rules, "cells": cells}
    if any(each.may_end for each in rules.values()):
        # Engines may not differ in which requests they answer: a number of requests, and no time.
        changes["seconds"] = None
    return changes


def make_request(
    options: RunOptions,
    scenario: Scenario,
    model: ModelInfo,
    seed: int,
    plugins: list[Plugin],
    say: Callable[[str], None],
    once: AskedOnce | None = None,
) -> RunRequest:
    """Return what will run: the engines that were asked for and can run here, with their default settings.

    The baseline is still to be chosen.

    Args:
        options: what was asked for.
        scenario: from `make_scenario`, fitted to the model.
        model: the file being timed.
        seed: of the run.
        plugins: every plugin there is.
        say: told which engine is left out, and why.
        once: keeps what engines answered, where many runs are prepared.

    Raises:
        CmpError: an engine that was named cannot run, or none can.
    """
    from enginecmp.plugins.discovery import find
    from enginecmp.run.probe import probe
    from enginecmp.run.request import RunRequest
    from enginecmp.run.selection import (
        check_options,
        choose,
        implied_options,
        parse_devices,
        parse_engines,
        parse_options,
        resolve_threads,
    )

    threads = resolve_threads(options.threads)
    chosen = parse_engines(options.engines, plugins)
    given = [*implied_options(options.engines, plugins), *options.options]
    extra = check_options(parse_options(given, chosen), chosen)
    if options.matrix:
        chosen = _fitting(chosen, model, say)
    everything = options.engines == "all"
    if everything:
        for plugin in plugins:
            if plugin.error is not None:
                say(f"left out: {plugin.name}: its plugin is broken: {plugin.error}")
    with tempfile.TemporaryDirectory(prefix="cmp-probe-") as logs:
        configs = choose(
            chosen,
            model,
            everything=everything,
            devices=parse_devices(options.device, chosen),
            threads=threads,
            context_tokens=scenario.context_tokens,
            needs=scenario.needs,
            needs_model=scenario.needs_model,
            decoding=scenario.needs_decoding,
            concurrency=most_in_flight(scenario),
            extra=extra,
            probe=lambda plugin, device, given: (once or probe)(plugin, device, Path(logs), given),
            say=say,
        )
    configs, untimed = by_what_is_timed(configs, say)
    if not configs:
        scenario = gate_only(scenario)
    reference = find(options.reference, plugins) if scenario.gate else None
    return RunRequest(
        scenario=scenario,
        model=model,
        configs=configs,
        untimed=untimed,
        baseline="",
        seed=seed,
        reference=reference,
        fresh_gate=options.fresh_gate,
        sensors=not options.no_sensors,
    )


def most_in_flight(scenario: Scenario) -> int:
    """Return the most requests that an engine may be given at once: a search for users may come by more than it has."""
    if scenario.find_max == "concurrency":
        return MOST_USERS
    return max(scenario.sequences(cell) for cell in scenario.cells)


def by_what_is_timed(
    configs: list[EngineConfig], say: Callable[[str], None]
) -> tuple[list[EngineConfig], list[EngineConfig]]:
    """Return the engines that will be timed, and those that only the gate looks at; the latter are told."""
    untimed = [config for config in configs if not config.timed]
    for config in untimed:
        say(f"{config.label}: not timed: device {config.options.device} proves what is computed, not how fast")
    return [config for config in configs if config.timed], untimed


def gate_only(scenario: Scenario) -> Scenario:
    """Return a scenario without anything that only launches need.

    Raises:
        UsageError: it has no gate, so nothing would be left.
    """
    if not scenario.gate:
        msg = "nothing to do: without the gate and without an engine to time; leave --no-gate out"
        raise UsageError(msg)
    return msgspec.structs.replace(scenario, blocks=0, offered_load=(), copy_bandwidth=False)


def _fitting(chosen: Mapping[str, Plugin], model: ModelInfo, say: Callable[[str], None]) -> dict[str, Plugin]:
    """Return the engines that can load a model of a matrix; the others are told."""
    from enginecmp.run.selection import unfit

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


def model_for(options: RunOptions, scenario: Scenario | None = None) -> ModelInfo:
    """Return the model that the options ask for; where nothing of it is measured and none is named, a tiny one.

    Args:
        options: what was asked for.
        scenario: of the options, where it is made already.

    Raises:
        CmpError: as `find_model` and `make_scenario`.
    """
    if options.model is None and not (scenario or make_scenario(options)).needs_model:
        from enginecmp.models.store import cache_dir, info_of
        from enginecmp.models.synth import write_synth

        path = cache_dir() / "stand-in.gguf"
        if not path.exists():
            write_synth(path, "tiny-llama")
        return info_of(path)
    return find_model(options.model)


def model_words(model: ModelInfo) -> list[str]:
    """Return the words of a command line that mean this file: by its name where that finds it, else by its path."""
    from enginecmp.models.store import DEFAULT_MODEL, resolve

    try:
        known = resolve(model.name, fetch=False).sha256 == model.sha256
    except CmpError:
        known = False
    if known and model.name == DEFAULT_MODEL:
        return []
    return ["--model", model.name if known else model.hf_folder or model.path]


def exact_of(model: ModelInfo) -> ModelInfo:
    """Return the float32 sibling of a model, for the gate."""
    from enginecmp.models.store import exact_sibling

    return exact_sibling(model)


def check_idle(wait: bool, say: Callable[[str], None]) -> None:
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
