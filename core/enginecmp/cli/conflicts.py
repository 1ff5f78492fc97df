"""Options of `cmp run` that do not go together: refused before anything happens, never ignored."""

from __future__ import annotations

from collections.abc import Collection

import click
from click.core import ParameterSource

from enginecmp.errors import UsageError

_GATE = ("score_positions", "max_kl", "max_nll_increase")
_WITH_RESUME = (
    *("resume", "model_name", "reference", "baseline", "save_baseline"),
    *("no_sensors", "wait_idle", "as_json"),
)
_EXCLUDED: dict[str, tuple[Collection[str], str]] = {
    "matrix": (("model_name", "save_baseline"), "measures several files, and {other} is about one run"),
    "no_gate": (_GATE, "skips the gate, and {other} is about it"),
    "quality_only": (
        ("no_gate", "adaptive", "save_baseline"),
        "is the gate without launches, and {other} asks for more or for less",
    ),
}
"""For an option: those that it excludes, and why."""


def refuse_conflicts(context: click.Context) -> None:
    """Look at the options that the command line gives; defaults conflict with nothing.

    Raises:
        UsageError: two of them contradict each other, or one says nothing without another.
    """
    names = {param.name: param.opts[0] for param in context.command.params if param.name}
    given = [name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if "resume" in given:
        _refuse(
            "resume",
            "goes on with what the manifest says",
            [other for other in given if other not in _WITH_RESUME],
            names,
        )
    for name, (excluded, why) in _EXCLUDED.items():
        if name in given:
            _refuse(name, why, [other for other in given if other in excluded], names)
    if "precision" in given and "adaptive" not in given:
        msg = "--precision: is what --adaptive aims at, and that is not given; add it, or leave --precision out"
        raise UsageError(msg)


def _refuse(name: str, why: str, others: list[str], names: dict[str, str]) -> None:
    if others:
        other = names[others[0]]
        msg = f"{names[name]}: {why.format(other=other)}; leave {other} out, or {names[name]}"
        raise UsageError(msg)
