"""A matrix file: models, engines and factors, of which every combination is measured.

    models = ["smollm2-135m-instruct:q8_0", "smollm2-135m-instruct:q4_1"]
    engines = ["custom_cpu"]
    scenario = "grid"

    [factors]
    threads = ["1", "2"]
    kv_type = ["f16", "q8_0"]

    [factors.speculation]
    none = {}
    lookup = { lookup = "2" }

Models have a run each, as with `--matrix a,b`; combinations of factors are engines of one run, measured in the same
blocks.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError
from enginecmp.format.documents import named_by_user, read_toml, require_known
from enginecmp.format.text import plain
from enginecmp.run.options import RunOptions

MOST_ENGINES = 64
_WORD = re.compile(r"[A-Za-z0-9_-]{1,40}")
_KEYS = ("models", "engines", "factors", "scenario", "profile")


class MatrixFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a matrix file says.

    Attributes:
        models: names or files, a run each.
        engines: whose options the factors are.
        factors: factor → level → options of the engine.
        scenario: what is measured; empty leaves it to the command line. So does `profile`.
        profile: how much of it.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...]
    factors: dict[str, dict[str, dict[str, str]]] = {}
    scenario: str = ""
    profile: str = ""


def is_file(value: str) -> bool:
    """Return whether the value of `--matrix` names a file and no models."""
    return value.endswith(".toml")


def read_matrix(path: Path) -> MatrixFile:
    """Read a matrix file.

    Raises:
        UsageError: it cannot be read, or says something that cannot be.
    """
    with named_by_user("--matrix", path):
        content = read_toml(path)
    require_known(content, _KEYS, f"--matrix {path}")
    factors = content.get("factors", {})
    if isinstance(factors, dict):
        content["factors"] = {name: _levels(name, levels) for name, levels in factors.items()}
    try:
        found = msgspec.convert(content, MatrixFile)
    except msgspec.ValidationError as error:
        msg = f"--matrix {path}: {error}"
        raise UsageError(msg) from error
    names = [*found.engines, *found.factors, *(level for levels in found.factors.values() for level in levels)]
    if wrong := next((name for name in names if not _WORD.fullmatch(name)), None):
        msg = f"--matrix {path}: expected names of letters, digits, - and _, got {plain(repr(wrong), 80)}"
        raise UsageError(msg)
    if not found.models or not found.engines or not all(found.factors.values()):
        msg = f"--matrix {path}: expected models, engines and at least one level of each factor"
        raise UsageError(msg)
    many = math.prod([len(found.engines), *map(len, found.factors.values())])
    if many > MOST_ENGINES:
        msg = (
            f"--matrix {path}: expected at most {MOST_ENGINES} combinations a model, got {many}; leave some levels out"
        )
        raise UsageError(msg)
    return found


def _levels(name: str, levels: Any) -> Any:
    """Return the levels of a factor with their options: a list is the values of the option of that name."""
    if not isinstance(levels, list):
        return levels
    return {re.sub(r"[^A-Za-z0-9_-]", "-", str(value)): {name: str(value)} for value in levels}


def _short(file: MatrixFile, factor: str, level: str) -> str:
    """Return what a label says of a factor: its level, with the factor's name where that alone says nothing."""
    same = sum(level in levels for levels in file.factors.values())
    return f"{factor}-{level}" if level.isdigit() or same > 1 else level


def expanded(options: RunOptions, file: MatrixFile) -> tuple[RunOptions, str]:
    """Return the options of every run, and the models as `--matrix` takes them.

    The first combination is the baseline where none was asked for. What the command line says of scenario and profile
    counts.
    """
    engines: list[str] = []
    given: list[str] = []
    for engine in file.engines:
        for combination in itertools.product(*(levels.items() for levels in file.factors.values())):
            parts = [_short(file, factor, level) for factor, (level, _) in zip(file.factors, combination, strict=True)]
            label = "+".join([engine, *parts])
            engines.append(f"{label}={engine}")
            given += [f"{label}.{key}={value}" for _, some in combination for key, value in some.items()]
    usual = RunOptions()
    options = msgspec.structs.replace(
        options,
        engines=",".join(engines),
        options=(*given, *options.options),
        scenario=file.scenario if file.scenario and options.scenario == usual.scenario else options.scenario,
        profile=options.profile or file.profile or None,
        baseline=options.baseline or engines[0].partition("=")[0],
    )
    return options, ",".join(file.models)
