"""Which runs may be pooled: same model, hardware, driver, scenario, and the same build of every engine they share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from enginecmp_analysis.data.load import Run

# What differs between two runs on one unchanged machine. Everything else in the environment must agree.
VOLATILE = frozenset({"available", "busy", "free", "hostname", "load", "mhz", "pid", "temperature", "time", "uptime"})

# What a run saw of its machine, not what the machine is; and which of several like machines it is.
SEEN = frozenset(
    {"commit", "copy_bandwidth", "copy_bandwidth_bytes_per_second", "doctor", "sensors", "node", "node_price_per_hour"}
)

# What does not touch a request that ended well: more blocks are more of the same measurement.
FREE_IN_SCENARIO = frozenset(
    {"blocks", "description", "deadlines", "expect", "give_up_after", "max_extra", "precision"}
)

# What a search for the largest load comes by.
SEARCHED = frozenset({"cells"})

# What the calibration before a sweep decides.
SWEPT = frozenset({"calibration", "cells", "offered_cells"})


@dataclass(slots=True)
class Group:
    """Runs that are pooled: blocks of all of them stand side by side.

    Attributes:
        runs: at least one.
        common: flattened fingerprint of model, machine and scenario.
        engines: flattened fingerprint of each engine label.
    """

    runs: list[Run]
    common: dict[str, str]
    engines: dict[str, dict[str, str]] = field(default_factory=dict)


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Sort runs into groups that may be pooled.

    Returns:
        The groups in order of their first run, and a warning for every group that had to be split off, naming
        what differs.
    """
    groups: list[Group] = []
    warnings: list[str] = []
    for run in runs:
        common, engines = common_fingerprint(run), engine_fingerprints(run)
        reasons: list[str] = []
        for group in groups:
            difference = _difference(group, common, engines)
            if not difference:
                group.runs.append(run)
                group.engines |= engines
                break
            first = group.runs[0].manifest.run_id
            reasons.append(f"run {run.manifest.run_id} is not pooled with {first}: {difference}")
        else:
            groups.append(Group([run], common, engines))
            warnings += reasons[:1]
    return groups, warnings


# What an engine was given, not what it is: a new build may differ in anything else.
GIVEN_TO_ENGINE = frozenset({"device", "options.threads", "options.max_sequences", "options.numerics"})


@dataclass(frozen=True, slots=True)
class Difference:
    """What is not the same in two runs, in words.

    Attributes:
        conditions: model, machine, driver, scenario, threads: with these, a comparison says nothing of the engine.
        builds: versions, libraries and options of engines: what one compares two runs for.
    """

    conditions: list[str]
    builds: list[str]


def difference(old: Run, new: Run) -> Difference:
    """Return what changed from one run to another; engines that only one of them has are passed over."""
    common = _compare("", common_fingerprint(old), common_fingerprint(new))
    conditions = [text for text in common if not text.startswith("environment.libraries.")]
    builds = [text for text in common if text.startswith("environment.libraries.")]
    before, after = engine_fingerprints(old), engine_fingerprints(new)
    for label in [label for label in after if label in before]:
        for text, name in _differing(f"{label} ", before[label], after[label]):
            (conditions if name in GIVEN_TO_ENGINE else builds).append(text)
    return Difference(conditions, builds)


def common_fingerprint(run: Run) -> dict[str, str]:
    """Return what two runs must share whatever engines they hold: dotted names to values."""
    manifest = run.manifest
    # The rates of a sweep follow from what the engines could do that day; the multiples are what was asked for.
    free = FREE_IN_SCENARIO | (SWEPT if manifest.scenario.get("offered_load") else frozenset())
    free |= SEARCHED if manifest.scenario.get("find_max") else frozenset()
    scenario = {key: value for key, value in manifest.scenario.items() if key not in free}
    flat = {
        "model sha256": manifest.model.sha256,
        "model quantization": manifest.model.quantization,
        **_flatten("scenario", scenario),
        **_flatten("environment", {key: value for key, value in manifest.environment.items() if key not in SEEN}),
    }
    return {name: value for name, value in flat.items() if not _is_volatile(name)}


def engine_fingerprints(run: Run) -> dict[str, dict[str, str]]:
    """Return version, device and options of each engine label, flattened."""
    return {
        engine.name: {"version": engine.version, "device": engine.device, **_flatten("options", engine.options)}
        for engine in run.manifest.engines
    }


def _is_volatile(name: str) -> bool:
    # The words of a dotted name, so that "free" does not catch "free_threaded".
    words = set(name.lower().replace(".", "_").split("_"))
    return name.startswith("environment.") and not words.isdisjoint(VOLATILE)


def _flatten(prefix: str, value: Any) -> dict[str, str]:
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= _flatten(f"{prefix}.{key}", inner)
        return flat
    return {prefix: json.dumps(value, sort_keys=True, default=str)}


def _difference(group: Group, common: Mapping[str, str], engines: Mapping[str, Mapping[str, str]]) -> str:
    """Return the differences between a group and a run in words, "" when there is none."""
    found = _compare("", group.common, common)
    for label, mine in engines.items():
        if label in group.engines:
            found += _compare(f"{label} ", group.engines[label], mine)
    shown = "; ".join(found[:3])
    return shown + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def _compare(prefix: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [text for text, _ in _differing(prefix, old, new)]


def _differing(prefix: str, old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return each difference in words, and its name."""
    return [
        (f"{prefix}{name} is {_short(new.get(name))}, was {_short(old.get(name))}", name)
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
        # A run lists the libraries of its own engines only; one that it does not list is no difference.
        if not name.startswith("environment.libraries.") or (name in old and name in new)
    ]


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 40 else value[:37] + "..."
