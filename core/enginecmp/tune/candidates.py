"""The settings that `cmp tune` tries: every combination where they are few, else one change at a time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from enginecmp.machine.environment import usable_cores
from enginecmp.run.selection import resolve_threads
from enginecmp.types import EngineInfo, LoadOptions

GRID_LIMIT = 12
"""Up to so many combinations are all tried."""

DEFAULT = "default"
"""Label of the engine as everybody gets it."""

THREADS = "threads"
"""The one tunable that is a field of `LoadOptions`."""

_NO_LABEL = re.compile(r"[^A-Za-z0-9_.+=,-]")

Values = Mapping[str, tuple[str, ...]]


class Candidate(msgspec.Struct, frozen=True):
    """One setting of an engine.

    Attributes:
        label: its name in the runs, e.g. "threads=2,flash_attn=on".
        changes: option → value where it differs from the default; empty for the default.
    """

    label: str
    changes: dict[str, str]


class Sweep(msgspec.Struct, frozen=True):
    """What is tried.

    Attributes:
        kind: "grid" is every combination; "one at a time" one change each, and later the best ones together.
        candidates: the default first, then by number of changes.
        combinations: how many there are in all.
    """

    kind: Literal["grid", "one at a time"]
    candidates: list[Candidate]
    combinations: int


def values_of(info: EngineInfo, device: str, fixed: Collection[str] = ()) -> Values:
    """Return option → values to try here, the default first; options with one value left are not among them.

    Args:
        info: the engine, with its `tunables`.
        device: what it will run on; a tunable "DEVICE:OPTION" is for that device alone.
        fixed: options that the user has set.
    """
    found: dict[str, tuple[str, ...]] = {}
    for key, values in info.tunables.items():
        where, _, option = key.rpartition(":")
        if (where and where != device) or option in fixed:
            continue
        here = tuple(dict.fromkeys(_here(option, value) for value in values))
        if len(here) > 1:
            found[option] = here
    return found


def _here(option: str, value: str) -> str:
    """Return a value with this machine's numbers in it."""
    if option == THREADS and value == "auto":
        return str(resolve_threads("auto"))
    cores = usable_cores()
    return value.replace("{cores}", str(cores)).replace("{half_cores}", str(max(1, cores // 2)))


def sweep_of(values: Values) -> Sweep:
    """Return the candidates of a sweep."""
    combinations = math.prod(map(len, values.values()))
    changes = [
        {option: value for option, value in zip(values, choice, strict=True) if value != values[option][0]}
        for choice in itertools.product(*values.values())
    ]
    if combinations <= GRID_LIMIT:
        return Sweep("grid", [candidate(some) for some in sorted(changes, key=len)], combinations)
    alone = [{option: value} for option, some in values.items() for value in some[1:]]
    return Sweep("one at a time", [candidate(some) for some in ({}, *alone)], combinations)


def candidate(changes: Mapping[str, str]) -> Candidate:
    """Return a candidate with its label; a label becomes a file name, so other characters become "_"."""
    label = ",".join(f"{option}={value}" for option, value in changes.items())
    return Candidate(_NO_LABEL.sub("_", label) or DEFAULT, dict(changes))


def combined(singles: Collection[Candidate], advantage: Mapping[str, float]) -> Candidate | None:
    """Return the best change of every option together, or None where fewer than two options have a good one.

    Args:
        singles: candidates with one change each.
        advantage: label → how much better it looked than the default; labels that did not are left out.
    """
    best: dict[str, tuple[float, str]] = {}
    for single in singles:
        if single.label in advantage:
            ((option, value),) = single.changes.items()
            best[option] = max(best.get(option, (-math.inf, "")), (advantage[single.label], value))
    return candidate({option: value for option, (_, value) in best.items()}) if len(best) > 1 else None


def with_changes(options: LoadOptions, changes: Mapping[str, str]) -> LoadOptions:
    """Return load options with a candidate's changes in place."""
    extra = {**options.extra, **{option: value for option, value in changes.items() if option != THREADS}}
    return msgspec.structs.replace(options, threads=int(changes.get(THREADS, options.threads)), extra=extra)
