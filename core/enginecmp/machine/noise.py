"""The machine's noise floor: what an A/A run of one engine under two labels measured, kept for later verdicts.

`cmp selftest --aa` writes it, `cmp stats` quotes it for runs of the same machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.format.documents import read_json
from enginecmp.machine.user_data import data_file
from enginecmp.results.files import write_atomically

_MACHINE = ("cpu", "cores", "memory_bytes", "os", "kernel")


class NoiseFloor(msgspec.Struct, kw_only=True):
    """What an A/A run found.

    Attributes:
        machine: CPU, cores, memory and operating system, as a manifest's environment has them.
        engine: name of the engine.
        version: of the engine.
        scenario: name and profile, e.g. "sustained/quick".
        metric: the scenario's primary metric.
        ratio: of the two labels; 1 without noise.
        ci_low: lower 95 % limit.
        ci_high: upper 95 % limit.
        cv_launches: spread of launch means over their mean, the larger of both labels.
        n_launches: of each label.
        runs: A/A runs so far.
        false_alarms: how many of them called the labels different.
        measured_utc: when the last one was made.
    """

    machine: dict[str, Any]
    engine: str
    version: str
    scenario: str
    metric: str
    ratio: float
    ci_low: float
    ci_high: float
    cv_launches: float
    n_launches: int
    runs: int
    false_alarms: int
    measured_utc: str

    def describe(self) -> str:
        """Return one line for people."""
        low, high = self.ci_low - 1, self.ci_high - 1
        return (
            f"noise floor of this machine: {self.engine} against itself in {self.scenario}: "
            f"{self.ratio - 1:+.1%} [{low:+.1%}, {high:+.1%}] in {self.metric}, launches spread by "
            f"{self.cv_launches:.1%} (n={self.n_launches}+{self.n_launches}, {self.measured_utc[:10]})"
        )


def machine_of(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest's environment that a noise floor belongs to."""
    return {key: environment.get(key) for key in _MACHINE}


def noise_file() -> Path:
    """Return where noise floors are kept."""
    return data_file("noise.json")


def known_floors() -> list[NoiseFloor]:
    """Return every noise floor on file; none where the file is missing or not ours."""
    try:
        floors: list[NoiseFloor] = read_json(noise_file(), list[NoiseFloor])
    except (FileNotFoundError, ResultsError):
        return []
    return floors


def floors_for(environment: Mapping[str, Any]) -> list[NoiseFloor]:
    """Return the noise floors of the machine that a run was made on."""
    machine = machine_of(environment)
    return [floor for floor in known_floors() if floor.machine == machine]


def described(environments: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what A/A runs have found on the machines of these environments, each once, in words."""
    return list(dict.fromkeys(floor.describe() for environment in environments for floor in floors_for(environment)))


def publish(floor: NoiseFloor) -> None:
    """Keep a noise floor in place of an earlier one of the same machine, engine and scenario.

    Raises:
        ResultsError: the file cannot be written.
    """
    path = noise_file()
    path.parent.mkdir(parents=True, exist_ok=True)

    def same(other: NoiseFloor) -> bool:
        return (other.machine, other.engine, other.scenario) == (floor.machine, floor.engine, floor.scenario)

    kept = [other for other in known_floors() if not same(other)]
    write_atomically(path, msgspec.json.format(msgspec.json.encode([*kept, floor]), indent=1) + b"\n")
