"""Scenario files: read one, apply a profile, check every key.

What comes out is complete: a run records it in its manifest and needs no file any more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import UsageError, did_you_mean, meant
from enginecmp.format.documents import converted, named_by_user, read_text, read_toml, require_known
from enginecmp.format.measures import Measure
from enginecmp.format.records import Cell
from enginecmp.format.text import plain
from enginecmp.scenarios.check import check, claim_problems
from enginecmp.scenarios.decoding import DecodingRule, read_decoding
from enginecmp.scenarios.scenario import Expectation, Limits, Overload, Profile, Scenario
from enginecmp.scenarios.variants import VARIANTS
from enginecmp.scenarios.workload import Workload, read_workload, workload_problems
from enginecmp.telemetry.contention import Validity
from enginecmp.wire.deadlines import Deadlines

SHIPPED = Path(__file__).parent

_OWN_KEYS = (
    "name",
    "description",
    "primary_metric",
    "kind",
    "operation",
    "variants",
    "workloads",
    "decodings",
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
    """Return scenario files by name: the shipped ones, and those that plugins bring under other names."""
    files = [*map(Path, extra), *sorted(SHIPPED.glob("*.toml"))]
    return {file.stem: file for file in files}


def load_scenario(
    name_or_path: str,
    profile: str | None,
    extra: Iterable[str] = (),
    usual_profile: str = "full",
    measures: Mapping[str, Measure] = {},
) -> Scenario:
    """Read a scenario and apply a profile.

    Args:
        name_or_path: a shipped name, or a path that ends in ".toml".
        profile: name of one of its profiles; None takes the usual one, or the only one that the file has.
        extra: further scenario files, from plugins.
        usual_profile: see `profile`.
        measures: kinds of measurement that plugins bring, by name.

    Raises:
        UsageError: unknown name, unreadable file, wrong key or value; names the nearest right one.
    """
    path, content = _read(name_or_path, extra)
    return _resolve(content, profile, usual_profile, str(path), measures)


def profiles_of(name_or_path: str, extra: Iterable[str] = ()) -> list[str]:
    """Return the names of a scenario's profiles, at least one, in the order of its file.

    Raises:
        UsageError: as `load_scenario`.
    """
    path, content = _read(name_or_path, extra)
    profiles = content.get("profile")
    if not isinstance(profiles, dict) or not profiles:
        raise _without_profiles(str(path))
    return list(profiles)


def _without_profiles(where: str) -> UsageError:
    return UsageError(f"scenario {where}: expected at least one [profile.NAME] table")


def _read(name_or_path: str, extra: Iterable[str]) -> tuple[Path, dict[str, Any]]:
    """Return the file of a scenario, and what it says."""
    known = available(extra)
    name_or_path = meant(name_or_path, known)
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path)
    elif name_or_path in known:
        path = known[name_or_path]
    else:
        hint = "; the path of a scenario's file ends in .toml" if Path(name_or_path).exists() else ""
        msg = f"unknown scenario '{name_or_path}'{hint or did_you_mean(name_or_path, known)}"
        raise UsageError(msg)
    with named_by_user("scenario", path):
        return path, read_toml(path)


def _resolve(
    content: dict[str, Any],
    asked_profile: str | None,
    usual_profile: str,
    where: str,
    measures: Mapping[str, Measure],
) -> Scenario:
    require_known(content, _TOP_KEYS, f"scenario {where}")
    profiles = content.get("profile")
    if not isinstance(profiles, dict) or not profiles:
        raise _without_profiles(where)
    if asked_profile is None and usual_profile not in profiles and len(profiles) == 1:
        (usual_profile,) = profiles
    profile_name = meant(asked_profile or usual_profile, profiles)
    if profile_name not in profiles:
        if asked_profile is None:
            msg = (
                f"scenario {where}: has no profile '{usual_profile}'; choose: --profile {' or '.join(sorted(profiles))}"
            )
        else:
            msg = f"scenario {where}: unknown profile '{profile_name}'{did_you_mean(profile_name, profiles)}"
        raise UsageError(msg)
    raw = profiles[profile_name]
    table = f"{where} [profile.{profile_name}]"
    workloads = _workloads(content.get("workloads", {}), where)
    if isinstance(raw, dict) and "cells" in raw:
        raw = raw | {"cells": _cells(raw["cells"], table, workloads)}
    profile = _convert(raw, Profile, table)
    own = {key: content[key] for key in _OWN_KEYS if key in content}
    own["workloads"] = workloads
    own["decodings"] = _decodings(content.get("decodings", {}), where)
    cells = profile.cells or _cells(content.get("cells", []), where, workloads)
    if profile.output_tokens is not None:
        cells = [
            cell if cell.workload else msgspec.structs.replace(cell, output_tokens=profile.output_tokens)
            for cell in cells
        ]
    for key, kind in (("deadlines", Deadlines), ("validity", Validity), ("goodput", Limits), ("overload", Overload)):
        if key in own:
            own[key] = _convert(own[key], kind, f"{where} [{key}]")
    own["expect"] = _claims(own.get("expect", []), where)
    resolved = {"name": Path(where).stem, "primary_metric": "", **own}
    resolved |= {
        "profile": profile_name,
        "cells": cells,
        "blocks": profile.blocks,
        "requests": profile.requests,
        "seconds": profile.seconds,
        "warmup_requests": profile.warmup_requests,
        "replacement_requests": profile.requests // 2
        if profile.replacement_requests is None
        else profile.replacement_requests,
        "requests_of": profile.requests_of,
        **({"offered_load": profile.offered_load} if profile.offered_load else {}),
    }
    operation, variants = own.get("operation"), own.get("variants")
    if isinstance(operation, str) and operation in VARIANTS and isinstance(variants, dict):
        for variant, table in variants.items():
            _convert(table, VARIANTS[operation], f"{where} [variants.{plain(variant, 80)}]")
    elif isinstance(operation, str):
        resolved["measure"] = measures.get(operation)
    if "trace" in content:
        resolved["trace_seconds"] = read_trace(Path(where).parent / str(content["trace"]))
    scenario: Scenario = _convert(resolved, Scenario, where)
    check(scenario, where)
    return scenario


def load_expectations(path: Path) -> list[Expectation]:
    """Read the `[[expect]]` tables of a file: one of claims alone, or a scenario.

    Raises:
        UsageError: unreadable, without a claim, or with a wrong key; names the nearest right one.
    """
    with named_by_user("--expect", path):
        content = read_toml(path)
    require_known(content, _TOP_KEYS, f"scenario {path}")
    claims = _claims(content.get("expect", []), str(path))
    if not claims:
        msg = f"--expect {path}: expected at least one [[expect]] table with engine, metric and low or high, got none"
        raise UsageError(msg)
    for claim in claims:
        for expected, came in claim_problems(claim):
            msg = f"--expect {path}: expected {expected}, got {came}"
            raise UsageError(msg)
    return claims


def _claims(raw: Any, where: str) -> list[Expectation]:
    if not isinstance(raw, list):
        msg = f"scenario {where}: expected claims as [[expect]] tables, got {plain(repr(raw), 80)}"
        raise UsageError(msg)
    return [_convert(claim, Expectation, f"{where} expect {number + 1}") for number, claim in enumerate(raw)]


def _workloads(raw: Any, where: str) -> dict[str, Workload]:
    if not isinstance(raw, dict):
        msg = f"scenario {where}: expected workloads as [workloads.NAME] tables, got {plain(repr(raw), 80)}"
        raise UsageError(msg)
    found = {}
    for name, table in raw.items():
        place = f"{where} [workloads.{plain(name, 80)}]"
        found[name] = _convert(read_workload(table, Path(where).parent, place), Workload, place)
        for expected, came in workload_problems(name, found[name]):
            msg = f"scenario {where}: expected {expected}, got {came}"
            raise UsageError(msg)
    return found


def _decodings(raw: Any, where: str) -> dict[str, DecodingRule]:
    if not isinstance(raw, dict):
        msg = f"scenario {where}: expected decodings as [decodings.NAME] tables, got {plain(repr(raw), 80)}"
        raise UsageError(msg)
    found = {}
    for name, table in raw.items():
        place = f"{where} [decodings.{plain(name, 80)}]"
        found[name] = _convert(read_decoding(table, Path(where).parent, place), DecodingRule, place)
    return found


def _cells(raw: Any, where: str, workloads: dict[str, Workload]) -> list[Cell]:
    if not isinstance(raw, list):
        msg = f"scenario {where}: expected cells as [[cells]] tables, got {plain(repr(raw), 80)}"
        raise UsageError(msg)
    return [_cell(cell, f"{where} cell {number + 1}", workloads) for number, cell in enumerate(raw)]


def _cell(raw: Any, where: str, workloads: dict[str, Workload]) -> Cell:
    """Return one cell; with a workload its lengths are the largest that can come."""
    if isinstance(raw, dict) and "workload" in raw:
        name = meant(str(raw["workload"]), workloads)
        if name not in workloads:
            msg = f"scenario {where}: unknown workload '{plain(name, 80)}'{did_you_mean(name, workloads)}"
            raise UsageError(msg)
        if given := {"prompt_tokens", "output_tokens"}.intersection(raw):
            msg = f"scenario {where}: expected no {' or '.join(sorted(given))} beside workload, which has its own"
            raise UsageError(msg)
        workload = workloads[name]
        lengths = {"prompt_tokens": workload.most_prompt_tokens, "output_tokens": workload.most_output_tokens}
        raw = {**raw, "workload": name, **lengths}
    cell: Cell = _convert(raw, Cell, where)
    return cell


def read_trace(path: Path) -> list[float]:
    """Return recorded arrival times in seconds: one number a line, rising; what follows a comma is not read.

    Raises:
        UsageError: unreadable, empty, not numbers, or not rising.
    """
    with named_by_user("trace", plain(str(path))):
        lines = read_text(path).splitlines()
    try:
        times = [float(line.partition(",")[0]) for line in lines if line.strip() and not line.startswith("#")]
    except ValueError as error:
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
            if phase not in names or not 0 < float(value) < math.inf:
                raise ValueError
            seconds[f"{phase}_seconds"] = float(value)
        except ValueError:
            msg = f"--deadline {item}: expected PHASE=SECONDS with PHASE one of {', '.join(sorted(names))}"
            raise UsageError(msg) from None
    return msgspec.structs.replace(deadlines, **seconds)


def _convert(value: Any, kind: Any, where: str) -> Any:
    return converted(value, kind, f"scenario {where}")
