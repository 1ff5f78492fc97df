"""The plan of a run: which engine is launched when, with which prompts.

Everything random comes from the run's seed through named generators, so a resumed run continues the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from enginecmp.format.records import Cell


class PlannedLaunch(msgspec.Struct, frozen=True):
    """One launch of one engine inside a block.

    Attributes:
        block: number of the block, from 0.
        order: position inside the block, from 0.
        engine: label of the engine.
        cell: number of the cell that the launch is for; None runs all cells in one launch.
    """

    block: int
    order: int
    engine: str
    cell: int | None = None

    @property
    def name(self) -> str:
        """Name of the launch in samples and log files, e.g. "b3-llamacpp", or "b3-llamacpp-c1" for one cell."""
        return f"b{self.block}-{self.engine}" + ("" if self.cell is None else f"-c{self.cell}")

    @property
    def key(self) -> tuple[int, str, int | None]:
        """What makes the launch the same one in a resumed run."""
        return self.block, self.engine, self.cell


def plan_launches(labels: Sequence[str], blocks: int, seed: int, cells: int | None = None) -> list[PlannedLaunch]:
    """Return every launch in the order in which it happens.

    In each block every engine is launched once, in an order drawn from the seed: with 3 % drift over a run,
    an A/A comparison in fixed order gives 93 % false alarms, in randomized blocks 5 %.

    Args:
        labels: of the engines.
        blocks: launches of each.
        seed: of the run.
        cells: with a launch for every cell, how many cells there are; every block then holds all of them.
    """
    numbers: Sequence[int | None] = [None] if cells is None else range(cells)
    launches: list[PlannedLaunch] = []
    for block in range(blocks):
        order = [(label, cell) for label in sorted(labels) for cell in numbers]
        random.Random(f"{seed}/order/{block}").shuffle(order)
        launches += [PlannedLaunch(block, position, *which) for position, which in enumerate(order)]
    return launches


def cells_in_block(cells: Sequence[Cell], block: int, seed: int) -> list[Cell]:
    """Return the cells in the order in which every launch of a block runs them."""
    order = list(cells)
    random.Random(f"{seed}/cells/{block}").shuffle(order)
    return order


def prompt_key(block: int, cell_number: int, phase: str, index: int, seed: int) -> int:
    """Return the key of a request's prompt: the same for every engine of a block, different between blocks."""
    return random.Random(f"{seed}/prompt/{block}/{cell_number}/{phase}/{index}").getrandbits(48)
