"""Putting stored winners in place of an engine's defaults, or beside them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import msgspec

from enginecmp.contender import Contender
from enginecmp.environment import describe_environment
from enginecmp.errors import CmpError
from enginecmp.tune import store
from enginecmp.tune.candidates import THREADS, with_changes
from enginecmp.types import ModelInfo

SUFFIX = "+tuned"
"""What the label of a tuned engine ends in where its default runs beside it."""


def with_tuned(
    contenders: list[Contender],
    model: ModelInfo,
    *,
    both: bool,
    everything: bool,
    given: Mapping[str, Collection[str]],
    say: Callable[[str], None],
) -> list[Contender]:
    """Return the engines of a run with what `cmp tune` stored for them.

    Args:
        contenders: with their default options.
        model: the file that they will load.
        both: run NAME as it comes and NAME+tuned; otherwise NAME is the tuned one.
        everything: "all" was asked: engines without a stored winner are told, and left out or run as they come.
        given: label → options that the user has set; they win over what was stored.
        say: told who has none and what wins over what.

    Raises:
        CmpError: an engine that was named has no stored winner, or none has one.
    """
    environment = describe_environment()
    chosen: list[Contender] = []
    found = False
    for contender in contenders:
        winner, instead = store.find(contender, model, environment)
        if winner is None:
            because = f" ({instead})" if instead else ""
            msg = (
                f"{contender.plugin.name}: expected settings tuned for this machine, version and model{because}, "
                f"found none; run: cmp tune {contender.plugin.name} --model {model.name}"
            )
            if not everything:
                raise CmpError(msg)
            say(f"{'default only' if both else 'left out'}: {msg}")
            chosen += [contender] if both else []
            continue
        found = True
        fixed = set(given.get(contender.label, ())) & set(winner.changes)
        for option in sorted(fixed):
            value = contender.options.threads if option == THREADS else contender.options.extra[option]
            say(f"{contender.label}: {option}={value} as given, not {winner.changes[option]} as tuned")
        changes = {option: value for option, value in winner.changes.items() if option not in fixed}
        tuned = msgspec.structs.replace(
            contender,
            label=contender.label + (SUFFIX if both else ""),
            options=with_changes(contender.options, changes),
            tuned="tuned",
        )
        if not both:
            chosen.append(tuned)
        elif tuned.options == contender.options:
            say(f"{contender.label}: the tuned settings are those it has anyway, so it runs once")
            chosen.append(contender)
        else:
            chosen += [contender, tuned]
    if not found:
        msg = "no engine has tuned settings for this machine and model; run `cmp tune ENGINE` first"
        raise CmpError(msg)
    return chosen
