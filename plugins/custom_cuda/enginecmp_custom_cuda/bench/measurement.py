"""One measured quantity."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Measurement:
    """Repeated timings of one thing, whose result was checked.

    Attributes:
        name: what was measured.
        setting: how, such as {"grid": 264}.
        seconds: of one unit of the work, one value a repetition; empty on a device that is not timed.
        nbytes: read by one unit of the work, where bandwidth is the point.
        verified: what the work left behind was right.
    """

    name: str
    setting: Mapping[str, int | str]
    seconds: tuple[float, ...]
    verified: bool
    nbytes: int | None = None
    median: float | None = field(init=False)
    bytes_per_second: float | None = field(init=False)

    def __post_init__(self) -> None:
        median = statistics.median(self.seconds) if self.seconds else None
        object.__setattr__(self, "median", median)
        object.__setattr__(self, "bytes_per_second", self.nbytes / median if self.nbytes and median else None)
