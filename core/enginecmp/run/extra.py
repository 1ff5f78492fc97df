"""How much may be run on top of the plan: launches that repeat disturbed ones, and further blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from enginecmp.format.records import LaunchRecord
from enginecmp.scenarios.plan import PlannedLaunch

MOST_REPLACEMENTS = 0.5
"""At most so many launches are repeated, as a share of those planned."""


class Budget:
    """What is left for launches on top of the plan, told from the launches that are over.

    Args:
        share: most time for them, as a share of the time that the planned ones take.
        plan: the planned launches.
        over: launches that are over.
    """

    def __init__(self, share: float, plan: Sequence[PlannedLaunch], over: Iterable[LaunchRecord]) -> None:
        self.replacements = 0
        self._share = share
        self._plan = plan
        self._keys = {planned.key for planned in plan}
        self._seconds: dict[tuple[str, int | None], list[float]] = {}
        self._spent = 0.0
        for record in over:
            self.ended(record)

    def ended(self, record: LaunchRecord) -> None:
        """Take in a launch that is over."""
        repeated = record.replaces is not msgspec.UNSET
        if repeated:
            self.replacements += 1
        else:
            self._seconds.setdefault((record.engine, record.cell), []).append(record.seconds)
        if repeated or record.key not in self._keys:
            self._spent += record.seconds

    def allows_replacement(self, planned: PlannedLaunch) -> bool:
        """Return whether a launch may be repeated."""
        most = min(self._share, MOST_REPLACEMENTS) * len(self._plan)
        return self.replacements + 1 <= most and self.allows([planned])

    def allows(self, launches: Sequence[PlannedLaunch]) -> bool:
        """Return whether there is time for launches on top; what was never launched yet takes none."""
        most = self._share * self._expected(self._plan)
        return most > 0 and self._spent + self._expected(launches) <= most

    def _expected(self, launches: Iterable[PlannedLaunch]) -> float:
        seen = (self._seconds.get((planned.engine, planned.cell), [0.0]) for planned in launches)
        return sum(sum(seconds) / len(seconds) for seconds in seen)
