"""Which launches count, told from flags and failures alone: never from a value that was measured."""

from __future__ import annotations

from collections.abc import Iterable

from enginecmp.format.enough import LAUNCHES_NEEDED, REQUESTS_NEEDED
from enginecmp.format.flags import OF_THE_ENGINE, SPOIL_TIMES, Flag
from enginecmp.format.records import Cell, Sample
from enginecmp.scenarios import Scenario


class _Seen:
    """What one launch measured in one cell: requests that count, that a flag of the machine spoilt, that are lost."""

    __slots__ = ("counting", "disturbed", "lost")

    def __init__(self) -> None:
        self.counting = self.disturbed = self.lost = 0


class Counting:
    """The launches of a run, and in which cells they count.

    A cell with several requests in flight counts as a whole: one flagged request leaves its window without a
    throughput; so does a load with its first request. With one request at a time, what was flagged is left out, and
    the rest counts where it is enough.

    Args:
        scenario: of the run.
        samples: those that are on disk already.
    """

    def __init__(self, scenario: Scenario, samples: Iterable[Sample] = ()) -> None:
        self._scenario = scenario
        # What is measured in bytes is the same beside a busy neighbour.
        self._harmless = SPOIL_TIMES if scenario.primary_metric.endswith("_bytes") else frozenset()
        self._seen: dict[str, dict[Cell, _Seen]] = {}
        self._where: dict[str, tuple[str, int]] = {}
        for sample in samples:
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """Count one sample; loads count where loading is what is measured."""
        if Flag.TORN_LAUNCH in sample.flags:
            return
        if sample.phase != "measure" and (sample.phase != "load" or self._scenario.kind != "load"):
            return
        self._where[sample.launch] = sample.engine, sample.block
        seen = self._seen.setdefault(sample.launch, {}).setdefault(sample.cell, _Seen())
        if sample.status != "ok" or not set(OF_THE_ENGINE).isdisjoint(sample.flags):
            seen.lost += 1
        elif not self._harmless.issuperset(sample.flags):
            seen.disturbed += 1
        elif sample.phase == "measure":
            seen.counting += 1

    def disturbed_cells(self, launch: str) -> list[Cell]:
        """Return the cells in which a launch would count, had the rest of the machine kept still."""
        return [
            cell
            for cell, seen in self._seen.get(launch, {}).items()
            if seen.disturbed and not seen.lost and not self._counts(cell, seen)
        ]

    def short(self, labels: Iterable[str], blocks: int) -> dict[str, int]:
        """Return label → launches that the worst of its cells lacks, for those that can be helped.

        A cell in which no launch ever counted is not waited for: what spoils all of them spoils the next one too.

        Args:
            labels: engines that are still launched.
            blocks: launches planned of each.
        """
        wanted = min(LAUNCHES_NEEDED, blocks)
        valid: dict[str, dict[Cell, set[int]]] = {}
        for launch, cells in self._seen.items():
            engine, block = self._where[launch]
            for cell, seen in cells.items():
                if self._counts(cell, seen):
                    valid.setdefault(engine, {}).setdefault(cell, set()).add(block)
        lacking = {label: wanted - min(map(len, valid[label].values())) for label in labels if label in valid}
        return {label: count for label, count in lacking.items() if count > 0}

    def _counts(self, cell: Cell, seen: _Seen) -> bool:
        whole = cell.concurrency > 1 or bool(cell.arrival) or self._scenario.kind == "load"
        if whole and seen.disturbed:
            return False
        return seen.counting >= min(REQUESTS_NEEDED, self._scenario.requests_in(cell))
