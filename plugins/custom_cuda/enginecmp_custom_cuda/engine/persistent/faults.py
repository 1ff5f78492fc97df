"""What can be wrong with a schedule, by name."""

from __future__ import annotations

from dataclasses import dataclass

NAMES = {
    "row": "a row of the plan is not one that the kernel understands",
    "lost_tile": "nobody owns a tile",
    "doubled_tile": "a tile has several owners",
    "foreign_tile": "a tile is not in the matrix",
    "wrong_target": "a wait's target is not the number of signals it is to follow",
    "unreachable_target": "a wait's target is more than its counter can reach",
    "deadlock": "waits depend on each other in a circle, or on nothing that comes",
    "mixed_epochs": "a counter can be raised by a later step before an earlier one is done",
    "race": "nothing puts a read and a write of the same memory in order",
    "ring": "the ring has too few slots, or its slots are too small for a chunk",
    "shared_memory": "regions of shared memory overlap, are too small, or do not fit",
    "misaligned": "a copy does not begin or end at a multiple of 16 bytes",
    "positions": "the tokens do not fit in the cache or in the rotation table",
}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a schedule: its name, from `NAMES`, and where."""

    name: str
    where: str

    def __str__(self) -> str:
        return f"{self.name} ({NAMES[self.name]}): {self.where}"
