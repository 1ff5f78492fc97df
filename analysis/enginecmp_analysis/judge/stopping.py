"""When an adaptive run may end: on precision, never on significance.

Looking after every block until p < .05 calls 29 % of equal engines different. The width of an interval says nothing
about where it lies, so stopping on it leaves the error rates as they are, from ten blocks on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp_analysis.schema.stats import Comparison


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an adaptive run has come.

    Attributes:
        reached: every primary comparison is precise enough and has ten launches.
        precision: relative half-width of the widest interval; NaN when one has no interval yet.
        launches: of the comparison that has fewest.
    """

    reached: bool
    precision: float
    launches: int


def progress(comparisons: Iterable[Comparison], wanted: float) -> Progress:
    """Return whether the primary comparisons are precise enough to stop.

    Args:
        comparisons: of a `StatsReport` over the blocks so far; exploratory ones are passed over.
        wanted: largest relative half-width of a 95 % interval, e.g. 0.02.
    """
    primary = [c for c in comparisons if c.primary]
    if not primary:
        return Progress(False, math.nan, 0)
    widths = [math.sqrt(c.ci_high / c.ci_low) - 1 if c.ci_low > 0 else math.nan for c in primary]
    precision = math.nan if any(math.isnan(width) for width in widths) else max(widths)
    launches = min(c.n_launches for c in primary)
    return Progress(launches >= LAUNCHES_NEEDED and precision <= wanted, precision, launches)
