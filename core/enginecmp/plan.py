"""The plan of a run: which engine is launched when, with which prompts.

Everything random comes from the run's seed through named generators, so a resumed run continues the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from enginecmp.types import Cell


class PlannedLaunch(msgspec.Struct, frozen=True):
    """One launch of one engine inside a block.

    Attributes:
        block: number of the block, from 0.
        order: position inside the block, from 0.
        engine: label of the engine.
    """

    block: int
    order: int
    engine: str

    @property
    def name(self) -> str:
        """Name of the launch in samples and log files, e.g. "b3-llamacpp"."""
        return f"b{self.block}-{self.engine}"


def plan_launches(labels: Sequence[str], blocks: int, seed: int) -> list[PlannedLaunch]:
    """Return every launch in the order in which it happens.

    In each block every engine is launched once, in an order drawn from the seed: with 3 % drift over a run,
    an A/A comparison in fixed order gives 93 % false alarms, in randomized blocks 5 %.
    """
    launches: list[PlannedLaunch] = []
    for block in range(blocks):
        order = sorted(labels)
        random.Random(f"{seed}/order/{block}").shuffle(order)
        launches += [PlannedLaunch(block, position, label) for position, label in enumerate(order)]
    return launches


def cells_in_block(cells: Sequence[Cell], block: int, seed: int) -> list[Cell]:
    """Return the cells in the order in which every launch of a block runs them."""
    order = list(cells)
    random.Random(f"{seed}/cells/{block}").shuffle(order)
    return order


def prompt_key(block: int, cell_number: int, phase: str, index: int, seed: int) -> int:
    """Return the key of a request's prompt: the same for every engine of a block, different between blocks."""
    return random.Random(f"{seed}/prompt/{block}/{cell_number}/{phase}/{index}").getrandbits(48)
