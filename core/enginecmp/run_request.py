"""What a run is to do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from enginecmp.contender import Contender
from enginecmp.plugins import Plugin
from enginecmp.scenarios import Scenario
from enginecmp.types import ModelInfo


class RunRequest(msgspec.Struct, kw_only=True):
    """Everything that decides what a run does.

    Attributes:
        scenario: with its profile applied and overrides in place.
        model: the file being timed.
        contenders: the engines, baseline included.
        untimed: engines that take part in the gate alone, since their device's times mean nothing.
        baseline: label that others are compared with.
        seed: everything random comes from it.
        reference: plugin of the gate's reference; None without a gate.
        exact: float32 sibling of the model for the gate; None without a gate.
        sensors: whether sensors run beside it.
        enough: asked before each block from `run.MIN_BLOCKS` on whether an adaptive run is precise enough to stop;
            None runs all blocks.
        gate_timed_only: hold engines against the reference only on the file being timed.
        retire: asked before each block, with its number, which labels are not launched any more; a run in which all
            are retired is over.
    """

    scenario: Scenario
    model: ModelInfo
    contenders: list[Contender]
    baseline: str
    seed: int
    reference: Plugin | None = None
    exact: ModelInfo | None = None
    untimed: list[Contender] = []
    sensors: bool = True
    enough: Callable[[Path], bool] | None = None
    gate_timed_only: bool = False
    retire: Callable[[Path, int], Collection[str]] | None = None

    @property
    def everybody(self) -> list[Contender]:
        """Every engine that the gate looks at."""
        return [*self.contenders, *self.untimed]

    @property
    def labels(self) -> list[str]:
        """Labels of the engines that the run is about: those that are timed, or all where none is."""
        return [contender.label for contender in self.contenders or self.untimed]
