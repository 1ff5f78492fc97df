"""What the engines share: the option that picks an aggregator, its presets, and whether a variant allows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginecmp import LoadOptions, Preset, UnknownOption
from enginecmp.errors import EngineError, did_you_mean
from enginecmp_federation.settings import AGGREGATORS, broken_rule

AGGREGATOR = "aggregator"


def presets(prefix: str, how: str) -> dict[str, Preset]:
    """Return a preset for every aggregator: "PREFIX-multi-krum" and so on."""
    return {
        f"{prefix}-{name.replace('_', '-')}": Preset(
            what=f"{name} {how}", install="make setup", options={AGGREGATOR: name}, docs="docs/workloads/federation.md"
        )
        for name in AGGREGATORS
    }


def chosen(engine: str, options: LoadOptions) -> str:
    """Return the aggregator that the options name; without one, fedavg.

    Raises:
        UnknownOption: another option was given, or no aggregator of ours.
    """
    for key in options.extra:
        if key != AGGREGATOR:
            msg = f"{engine}: unknown option '{key}'{did_you_mean(key, [AGGREGATOR])}"
            raise UnknownOption(msg)
    name = options.extra.get(AGGREGATOR, AGGREGATORS[0])
    if name not in AGGREGATORS:
        msg = f"{engine}: {AGGREGATOR}: expected one of {', '.join(AGGREGATORS)}, got '{name}'"
        raise UnknownOption(msg + did_you_mean(name, AGGREGATORS))
    return name


def checked(engine: str, aggregator: str, parameters: Mapping[str, Any]) -> int:
    """Return how many attackers an aggregator shall tolerate.

    Raises:
        EngineError: it cannot with so many nodes; names the rule.
    """
    attackers = int(parameters["attackers"])
    if broken := broken_rule(aggregator, parameters["nodes"], attackers):
        msg = f"{engine}: {broken}"
        raise EngineError(msg)
    return attackers
