"""Settings that won, by machine, engine version, model and device: `cmp tune` writes them, `cmp run --tuned` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from enginecmp.errors import ResultsError, meant
from enginecmp.format.documents import read_json
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.machine.noise import machine_of
from enginecmp.machine.user_data import data_file
from enginecmp.results.files import write_atomically
from enginecmp.types import ModelInfo

FILE = "tuned.json"


class Tuned(msgspec.Struct, kw_only=True):
    """The best settings found for one engine on one machine, model and device.

    Attributes:
        machine: CPU, cores, memory and operating system, as a manifest's environment has them.
        engine: name of the engine.
        version: of the wrapped engine.
        model: name of the model.
        model_sha256: its hash.
        device: what it ran on.
        changes: option → value where the winner differs from the default; empty when the default won.
        metric: what was raced for.
        scenario: name and profile, e.g. "sustained/quick".
        ratio: winner / default of that metric; 1 when the default won.
        ci_low: lower 95 % limit of it; null when the default won.
        ci_high: upper 95 % limit likewise.
        n_launches: blocks that hold both.
        ended: why the race was over.
        runs: folders of the runs behind it.
        tuned_utc: when it was found.
    """

    machine: dict[str, Any]
    engine: str
    version: str
    model: str
    model_sha256: str
    device: str
    changes: dict[str, str]
    metric: str
    scenario: str
    ratio: float = 1.0
    ci_low: float | None = None
    ci_high: float | None = None
    n_launches: int = 0
    ended: str = ""
    runs: list[str] = []
    tuned_utc: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What it belongs to."""
        return tuple(sorted(self.machine.items())), self.engine, self.version, self.model_sha256, self.device


def known() -> list[Tuned]:
    """Return every stored winner.

    Raises:
        ResultsError: the file is not ours.
    """
    path = data_file(FILE)
    try:
        winners: list[Tuned] = read_json(path, list[Tuned])
    except FileNotFoundError:
        return []
    except ResultsError as error:
        got = str(error).removeprefix(f"{path}: ")
        msg = f"{path}: expected winners of `cmp tune` as JSON, got: {got}; fix or remove it"
        raise ResultsError(msg) from error
    return winners


def find(config: EngineConfig, model: ModelInfo, environment: Mapping[str, Any]) -> tuple[Tuned | None, str]:
    """Return the stored winner of a config, or None and what there is instead.

    Args:
        config: the engine with its default options.
        model: the file it will load.
        environment: of the machine, as in a manifest.
    """
    mine = [tuned for tuned in known() if tuned.engine == config.plugin.name]
    machine = machine_of(environment)
    wanted = (model.sha256, config.options.device, machine, config.engine_version)
    for tuned in mine:
        if (tuned.model_sha256, tuned.device, tuned.machine, tuned.version) == wanted:
            return tuned, ""
    for tuned in mine:
        if (tuned.model_sha256, tuned.device, tuned.machine) == wanted[:3]:
            return None, f"tuned was version {tuned.version}, installed is {config.engine_version}"
        if (tuned.model_sha256, tuned.device) == wanted[:2]:
            return None, "it was tuned on another machine, or under another kernel"
    return None, ""


def publish(tuned: Tuned) -> None:
    """Keep a winner in place of an earlier one of the same machine, engine, version, model and device.

    Raises:
        ResultsError: the file cannot be written.
    """
    _write([*(other for other in known() if other.key != tuned.key), tuned])


def forget(engine: str, model_sha256: str | None) -> list[Tuned]:
    """Remove the winners of an engine, of one model or of all, and return them."""
    engine = meant(engine, {tuned.engine for tuned in known()})
    gone = [t for t in known() if t.engine == engine and model_sha256 in (None, t.model_sha256)]
    if gone:
        keys = [tuned.key for tuned in gone]
        _write([tuned for tuned in known() if tuned.key not in keys])
    return gone


def _write(winners: list[Tuned]) -> None:
    path = data_file(FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(winners), indent=1) + b"\n")
