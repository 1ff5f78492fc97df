"""Scenario files: read one, apply a profile, check every key.

What comes out is complete: a run records it in its manifest and needs no file any more.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.deadlines import Deadlines
from enginecmp.errors import UsageError, did_you_mean
from enginecmp.scenarios.check import check
from enginecmp.scenarios.scenario import Expectation, Limits, Overload, Profile, Scenario
from enginecmp.scenarios.variants import VARIANTS
from enginecmp.telemetry.contention import Validity
from enginecmp.types import Cell

SHIPPED = Path(__file__).parent

_OWN_KEYS = (
    "name",
    "description",
    "primary_metric",
    "kind",
    "operation",
    "variants",
    "cells",
    "launch_per_cell",
    "offered_load",
    "offered_limit",
    "overload",
    "arrival",
    "burstiness",
    "copy_bandwidth",
    "goodput",
    "expect",
    "deadlines",
    "validity",
    "give_up_after",
    "score_positions",
    "max_kl",
    "max_nll_increase",
)
"""Keys of a file that are fields of `Scenario` as they stand."""

_TOP_KEYS = (*_OWN_KEYS, "profile", "trace")


def available(extra: Iterable[str] = ()) -> dict[str, Path]:
    """Return scenario files by name: the shipped ones, and those that plugins bring."""
    files = [*sorted(SHIPPED.glob("*.toml")), *map(Path, extra)]
    return {file.stem: file for file in files}


def load_scenario(name_or_path: str, profile: str, extra: Iterable[str] = ()) -> Scenario:
    """Read a scenario and apply a profile.

    Args:
        name_or_path: a shipped name, or a path that ends in ".toml".
        profile: name of one of its profiles.
        extra: further scenario files, from plugins.

    Raises:
        UsageError: unknown name, unreadable file, wrong key or value; names the nearest right one.
    """
    known = available(extra)
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path)
    elif name_or_path in known:
        path = known[name_or_path]
    else:
        hint = "; the path of a scenario's file ends in .toml" if Path(name_or_path).exists() else ""
        msg = f"unknown scenario '{name_or_path}'{hint or did_you_mean(name_or_path, known)}"
        raise UsageError(msg)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"scenario {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"scenario {path}: not TOML: {error}"
        raise UsageError(msg) from error
    return _resolve(content, profile, str(path))


def _resolve(content: dict[str, Any], profile_name: str, where: str) -> Scenario:
    _check_keys(content, _TOP_KEYS, where)
    profiles = content.get("profile")
    if not isinstance(profiles, dict) or not profiles:
        msg = f"scenario {where}: expected at least one [profile.NAME] table"
        raise UsageError(msg)
    if profile_name not in profiles:
        msg = f"scenario {where}: unknown profile '{profile_name}'{did_you_mean(profile_name, profiles)}"
        raise UsageError(msg)
    raw = profiles[profile_name]
    table = f"{where} [profile.{profile_name}]"
    if isinstance(raw, dict) and "cells" in raw:
        raw = raw | {"cells": _cells(raw["cells"], table)}
    profile = _convert(raw, Profile, table)
    own = {key: content[key] for key in _OWN_KEYS if key in content}
    cells = profile.cells or _cells(content.get("cells", []), where)
    if profile.output_tokens is not None:
        cells = [msgspec.structs.replace(cell, output_tokens=profile.output_tokens) for cell in cells]
    for key, kind in (("deadlines", Deadlines), ("validity", Validity), ("goodput", Limits), ("overload", Overload)):
        if key in own:
            own[key] = _convert(own[key], kind, f"{where} [{key}]")
    expected = own.get("expect", [])
    own["expect"] = [
        _convert(claim, Expectation, f"{where} expect {number + 1}") for number, claim in enumerate(expected)
    ]
    resolved = {"name": Path(where).stem, "primary_metric": "", **own}
    resolved |= {
        "profile": profile_name,
        "cells": cells,
        "blocks": profile.blocks,
        "requests": profile.requests,
        "seconds": profile.seconds,
        "warmup_requests": profile.warmup_requests,
        "spare_requests": profile.requests // 2 if profile.spare_requests is None else profile.spare_requests,
        "requests_of": profile.requests_of,
        **({"offered_load": profile.offered_load} if profile.offered_load else {}),
    }
    if own.get("operation") in VARIANTS:
        for variant, table in own.get("variants", {}).items():
            _convert(table, VARIANTS[own["operation"]], f"{where} [variants.{variant}]")
    if "trace" in content:
        resolved["trace_seconds"] = read_trace(Path(where).parent / str(content["trace"]))
    scenario: Scenario = _convert(resolved, Scenario, where)
    check(scenario, where)
    return scenario


def _cells(raw: Any, where: str) -> list[Cell]:
    if not isinstance(raw, list):
        return []
    return [_convert(cell, Cell, f"{where} cell {number + 1}") for number, cell in enumerate(raw)]


def read_trace(path: Path) -> list[float]:
    """Return recorded arrival times in seconds: one number a line, rising; what follows a comma is not read.

    Raises:
        UsageError: unreadable, empty, not numbers, or not rising.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        times = [float(line.partition(",")[0]) for line in lines if line.strip() and not line.startswith("#")]
    except OSError as error:
        msg = f"trace {path}: {error.strerror or error}"
        raise UsageError(msg) from error
    except (ValueError, UnicodeDecodeError) as error:
        msg = f"trace {path}: expected a time in seconds at the beginning of every line: {error}"
        raise UsageError(msg) from error
    if not times or any(later < earlier for earlier, later in itertools.pairwise(times)):
        msg = f"trace {path}: expected rising times in seconds, got {'none' if not times else 'one that falls'}"
        raise UsageError(msg)
    return [time - times[0] for time in times]


def change_deadlines(deadlines: Deadlines, items: Iterable[str]) -> Deadlines:
    """Return deadlines with each "PHASE=SECONDS" put in place.

    Raises:
        UsageError: not of that form.
    """
    names = {field.removesuffix("_seconds") for field in Deadlines.__struct_fields__}
    seconds: dict[str, float] = {}
    for item in items:
        phase, _, value = item.partition("=")
        try:
            if phase not in names or float(value) <= 0:
                raise ValueError
            seconds[f"{phase}_seconds"] = float(value)
        except ValueError:
            msg = f"--deadline {item}: expected PHASE=SECONDS with PHASE one of {', '.join(sorted(names))}"
            raise UsageError(msg) from None
    return msgspec.structs.replace(deadlines, **seconds)


def _check_keys(table: dict[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            msg = f"scenario {where}: unknown key '{key}'{did_you_mean(key, known)}"
            raise UsageError(msg)


def _convert(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        _check_keys(value, kind.__struct_fields__, where)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        msg = f"scenario {where}: {error}"
        raise UsageError(msg) from error
