"""Options that do not go together: refused before anything happens, never ignored."""

from __future__ import annotations

from collections.abc import Callable, Collection

import click
from click.core import ParameterSource

from enginecmp.errors import UsageError

_ABOUT_THE_GATE = ("score_positions", "max_kl", "max_nll_increase", "fresh_gate")
_WITH_RESUME = (
    *("resume", "model", "reference", "baseline", "save_baseline"),
    *("no_sensors", "wait_idle", "as_json", "dry_run", "on", "out"),
)
_WITH_EXTEND = (*(name for name in _WITH_RESUME if name != "on"), "blocks", "max_extra", "extend")
_WITH_HISTORY = ("over_time", "paths", "metrics", "form")


class Given:
    """The options that a command line gives; defaults conflict with nothing.

    Args:
        context: of the command.
    """

    def __init__(self, context: click.Context) -> None:
        self._words = {param.name: param.opts[0] for param in context.command.params if param.name}
        self._names = [
            name for name in self._words if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]

    def refuse_beside(self, option: str, why: str, excluded: Callable[[str], bool]) -> None:
        """Refuse what an option excludes.

        Args:
            option: name of its parameter.
            why: what the option does, "{other}" for the word of what it excludes.
            excluded: says of a parameter whether it is excluded.

        Raises:
            UsageError: both are given.
        """
        if option not in self._names:
            return
        for name in self._names:
            if name != option and excluded(name):
                word, other = self._words[option], self._words[name]
                msg = f"{word}: {why.format(other=other)}; leave {other} out, or {word}"
                raise UsageError(msg)

    def refuse_without(self, option: str, needed: str, why: str) -> None:
        """Refuse an option that says nothing alone.

        Raises:
            UsageError: it is given, and what it needs is not.
        """
        if option in self._names and needed not in self._names:
            word = self._words[option]
            msg = f"{word}: {why} {self._words[needed]}, which is not given; add it, or leave {word} out"
            raise UsageError(msg)


def _among(names: Collection[str]) -> Callable[[str], bool]:
    return lambda name: name in names


def _not_among(names: Collection[str]) -> Callable[[str], bool]:
    return lambda name: name not in names


def check_run(context: click.Context) -> None:
    """Look at the options of `cmp run`.

    Raises:
        UsageError: two of them contradict each other, or one says nothing without another.
    """
    given = Given(context)
    given.refuse_beside("resume", "goes on with what the manifest says", _not_among(_WITH_RESUME))
    given.refuse_beside(
        "extend", "adds to what the manifest says", lambda name: name == "resume" or name not in _WITH_EXTEND
    )
    if context.params.get("more_blocks") and context.params.get("extend") is None:
        msg = f"--blocks +{context.params['more_blocks']}: adds to a run; name it with --extend results/ID"
        raise UsageError(msg)
    if context.params.get("store") is None:  # --out names a folder
        for option in ("resume", "extend"):
            given.refuse_beside(option, "goes on in the run's own folder", _among(("out",)))
    else:
        for option in ("suite", "on"):
            given.refuse_beside(
                option, "makes folders of several runs, which s3:// does not hold yet", _among(("out",))
            )
    given.refuse_without("extend", "blocks", "adds as many blocks as are named by")
    given.refuse_beside(
        "matrix", "measures several files, and {other} is about one run", _among(("model", "save_baseline"))
    )
    given.refuse_beside(
        "suite",
        "holds runs of their own, and {other} is about one or about others",
        _among(("matrix", "save_baseline")),
    )
    given.refuse_beside("on", "runs on other machines, and {other} is about this one", _among(("save_baseline",)))
    for option in ("nodes", "require"):
        given.refuse_without(option, "on", "chooses among the machines of")
    given.refuse_beside(
        "find_max",
        "chooses loads and launches by itself, and {other} does too",
        _among(("matrix", "adaptive", "requests", "max_extra", "quality_only")),
    )
    given.refuse_without("find_max", "slo", "is the largest load that keeps")
    given.refuse_without("slo", "find_max", "is what must be kept by")
    given.refuse_beside("no_gate", "skips the gate, and {other} is about it", _among(_ABOUT_THE_GATE))
    given.refuse_beside(
        "quality_only",
        "is the gate without launches, and {other} asks for more or for less",
        _among(("no_gate", "adaptive", "save_baseline")),
    )
    given.refuse_without("precision", "adaptive", "is what is aimed at by")


def check_stats(context: click.Context) -> None:
    """Look at the options of `cmp stats`.

    Raises:
        UsageError: two of them contradict each other, or one says nothing without another.
    """
    given = Given(context)
    given.refuse_beside("over_time", "follows a metric over runs and compares no engines", _not_among(_WITH_HISTORY))
    given.refuse_without("detect", "planning", "is the difference that must be found by the plan of")


def check_report(context: click.Context) -> None:
    """Look at the options of `cmp report`.

    Raises:
        UsageError: two of them contradict each other.
    """
    given = Given(context)
    given.refuse_beside("site", "writes many files into a folder, and {other} names one", _among(("output",)))
