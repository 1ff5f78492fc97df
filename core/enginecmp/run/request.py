"""What a run is to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import msgspec

from enginecmp.errors import ResultsError
from enginecmp.format.documents import read_json
from enginecmp.format.files import RESUME
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.plugins.plugin import Plugin
from enginecmp.scenarios import Scenario
from enginecmp.types import ModelInfo


class Again(msgspec.Struct, kw_only=True):
    """What `cmp run --resume` must know beside the manifest: resume.json of a run.

    Attributes:
        model: path of the weights file.
        reference: engine that the gate trusts.
        sensors: whether sensors run beside it.
        baseline: name of the saved run that the finished one is compared with.
        save_baseline: name for the finished run.
        command: what starts such a run again, but for how many blocks and requests.
    """

    model: str
    reference: str
    sensors: bool = True
    baseline: str | None = None
    save_baseline: str | None = None
    command: str = ""


def read_again(folder: Path) -> Again | None:
    """Return what a run's folder keeps of how it was asked for; None in a run of an earlier version.

    Raises:
        ResultsError: it is not what it should be.
    """
    path = folder / RESUME
    try:
        again: Again = read_json(path, Again)
    except FileNotFoundError:
        return None
    except ResultsError as error:
        msg = f"{error}; remove it, and name what is not the default, e.g. --model"
        raise ResultsError(msg) from error
    return again


class RunRequest(msgspec.Struct, kw_only=True):
    """Everything that decides what a run does.

    Attributes:
        scenario: with its profile applied and overrides in place.
        model: the file being timed.
        configs: the engines, baseline included.
        untimed: engines that take part in the gate alone, since their device's times mean nothing.
        baseline: label that others are compared with.
        baseline_chosen: the user named it; else another one may take its place when the gate has spoken.
        seed: everything random comes from it.
        reference: plugin of the gate's reference; None without a gate.
        exact: float32 sibling of the model for the gate; None without a gate.
        sensors: whether sensors run beside it.
        enough: asked before each block from `LAUNCHES_NEEDED` on whether an adaptive run is precise enough to
            stop; None runs all blocks.
        again: kept in the run's folder, so that it can be resumed by its name alone.
        fresh_gate: ask every engine, whatever an earlier gate proved.
        gate_timed_only: hold engines against the reference only on the file being timed.
        next_loads: asked before each block of a search, with the run's folder, the block's number and the labels that
            still run, which loads each of them is measured at; None in all other runs.
        retire: asked before each block, with its number, which labels are not launched any more; a run in which all
            are retired is over.
        most_seconds: `retire` ends the run by then, so nobody is told that it takes longer.
        block_over: called between two blocks, while no engine runs and every sample is on disk.
    """

    scenario: Scenario
    model: ModelInfo
    configs: list[EngineConfig]
    baseline: str
    seed: int
    reference: Plugin | None = None
    exact: ModelInfo | None = None
    untimed: list[EngineConfig] = []
    sensors: bool = True
    enough: Callable[[Path], bool] | None = None
    again: Again | None = None
    gate_timed_only: bool = False
    next_loads: Callable[[Path, int, Sequence[str]], Mapping[str, Sequence[float]]] | None = None
    fresh_gate: bool = False
    retire: Callable[[Path, int], Collection[str]] | None = None
    most_seconds: float = math.inf
    baseline_chosen: bool = False
    block_over: Callable[[], None] | None = None

    @property
    def everybody(self) -> list[EngineConfig]:
        """Every engine that the gate looks at."""
        return [*self.configs, *self.untimed]

    @property
    def labels(self) -> list[str]:
        """Labels of the engines that the run is about: those that are timed, or all where none is."""
        return [config.label for config in self.configs or self.untimed]
