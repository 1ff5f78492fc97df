"""What is repeated where several runs are pooled: the run, or the node where they are of several nodes.

Runs of one node share the node: what an engine has of its own there (a node × engine interaction) cannot be seen
between them. Blocks of one node stand side by side as if they were of one run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from enginecmp.format.text import plain
from enginecmp_analysis.data.load import Run


@dataclass(frozen=True, slots=True)
class Level:
    """Where the blocks of one run stand in its group.

    Attributes:
        number: of the run, or of the node.
        first: number that the run's block 0 has there.
    """

    number: int
    first: int = 0

    def block(self, block: int) -> tuple[int, int]:
        """Return the block's place in the group."""
        return self.number, self.first + block


@dataclass(frozen=True, slots=True)
class Levels:
    """What is repeated in a group.

    Attributes:
        noun: "run" or "node".
        names: of each, by number.
        of_runs: where the blocks of each run stand.
    """

    noun: Literal["run", "node"] = "run"
    names: tuple[str, ...] = ()
    of_runs: tuple[Level, ...] = ()

    def name(self, number: int) -> str:
        """Return what one of them is called."""
        return self.names[number] if number < len(self.names) else f"{self.noun} {number + 1}"


def levels_of(runs: Sequence[Run]) -> Levels:
    """Return what is repeated in a group: its nodes where every run names one and there are several, else its runs.

    Args:
        runs: that are pooled, in their order.
    """
    nodes = [run.manifest.environment.get("node") for run in runs]
    if len(set(map(str, nodes))) < 2 or not all(isinstance(node, str) and node for node in nodes):
        return Levels("run", tuple(run.manifest.run_id for run in runs), tuple(map(Level, range(len(runs)))))
    names = list(dict.fromkeys(map(str, nodes)))
    after = [0] * len(names)
    places = []
    for run, node in zip(runs, nodes, strict=True):
        number = names.index(str(node))
        places.append(Level(number, after[number]))
        blocks = [*run.columns.block.tolist(), *(told.block for told in run.told)]
        # A sweep's calibration is block -1: room for one below the next run's first.
        after[number] += max(blocks, default=-1) + 2
    return Levels("node", tuple(plain(name, 64) for name in names), tuple(places))
