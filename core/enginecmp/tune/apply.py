"""Putting stored winners in place of an engine's defaults, or beside them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from enginecmp.errors import CmpError
from enginecmp.format.text import command_line
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.machine.environment import describe_environment
from enginecmp.run.prepare import model_words
from enginecmp.tune import store
from enginecmp.tune.candidates import THREADS, with_changes
from enginecmp.types import ModelInfo

SUFFIX = "+tuned"
"""What the label of a tuned engine ends in where its default runs beside it."""


def tune_words(config: EngineConfig, model: ModelInfo) -> list[str]:
    """Return the words of the command that tunes an engine for this model, on the device that it would run on."""
    return ["cmp", "tune", config.plugin.name, *model_words(model), *device_words(config)]


def device_words(config: EngineConfig) -> list[str]:
    """Return the words of a command line that mean an engine's device; none where that is its default."""
    usual = config.plugin.info.devices[0] if config.plugin.info is not None else ""
    return [] if config.options.device in ("", usual) else ["--device", config.options.device]


def with_tuned(
    configs: list[EngineConfig],
    model: ModelInfo,
    *,
    both: bool,
    everything: bool,
    threads_given: bool,
    say: Callable[[str], None],
) -> list[EngineConfig]:
    """Return the engines of a run with what `cmp tune` stored for them.

    Args:
        configs: with their default options.
        model: the file that they will load.
        both: run NAME as it comes and NAME+tuned; otherwise NAME is the tuned one.
        everything: "all" was asked: engines without a stored winner are told, and left out or run as they come.
        threads_given: the user has set their number, which then wins over what was stored, as engine options do.
        say: told who has none and what wins over what.

    Raises:
        CmpError: an engine that was named has no stored winner, or none has one.
    """
    environment = describe_environment()
    chosen: list[EngineConfig] = []
    found = False
    for config in configs:
        winner, instead = store.find(config, model, environment)
        if winner is None:
            because = f" ({instead})" if instead else ""
            msg = (
                f"{config.plugin.name}: expected settings tuned for this machine, version and model{because}, "
                f"found none; run: {command_line(tune_words(config, model))}"
            )
            if not everything:
                raise CmpError(msg)
            say(f"{'default only' if both else 'left out'}: {msg}")
            chosen += [config] if both else []
            continue
        found = True
        fixed = ({*config.options.extra} | ({THREADS} if threads_given else set())) & set(winner.changes)
        for option in sorted(fixed):
            value = config.options.threads if option == THREADS else config.options.extra[option]
            say(f"{config.label}: {option}={value} as given, not {winner.changes[option]} as tuned")
        changes = {option: value for option, value in winner.changes.items() if option not in fixed}
        tuned = msgspec.structs.replace(
            config,
            label=config.label + (SUFFIX if both else ""),
            options=with_changes(config.options, changes),
            tuned="tuned",
        )
        if not both:
            chosen.append(tuned)
        elif tuned.options == config.options:
            say(f"{config.label}: the tuned settings are those it has anyway, so it runs once")
            chosen.append(config)
        else:
            chosen += [config, tuned]
    if not found:
        msg = "no engine has tuned settings for this machine and model; the commands that tune them are above"
        raise CmpError(msg)
    return chosen
