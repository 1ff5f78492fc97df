"""Averages of imported launches: what another tool says of a launch whose requests are not all in its file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from enginecmp.errors import ResultsError
from enginecmp.format.files import LAUNCHES
from enginecmp.format.readers import finished_launches
from enginecmp.format.records import Cell
from enginecmp.format.text import plain
from enginecmp_analysis.data.columns import MOST_METRIC
from enginecmp_analysis.data.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Told:
    """What is told of one launch in one cell.

    Attributes:
        launch: its name.
        engine: label.
        block: number of the block.
        cell: point of the grid.
        metrics: name of a metric to the mean of the launch.
        requests: how many requests stand behind it, 0 where that is not told.
    """

    launch: str
    engine: str
    block: int
    cell: Cell
    metrics: dict[str, float]
    requests: int


def read_told(folder: Path, engines: Iterable[str]) -> tuple[Told, ...]:
    """Read the averages in a run's launches.jsonl.

    Args:
        folder: of the run.
        engines: labels that the manifest knows.

    Returns:
        One entry a launch and cell that has averages; none where the launches were measured by request.

    Raises:
        ResultsError: a line is not what format version 1 says, or an average is no positive number of a known metric.
    """
    known = set(engines)
    found: dict[tuple[str, Cell], Told] = {}
    for record in finished_launches(folder):
        for told in record.averages or ():
            where = f"{folder / LAUNCHES}: averages of {plain(record.launch)}"
            wrong = [name for name, value in told.metrics.items() if name not in METRICS or not 0 < value < math.inf]
            if record.engine not in known:
                msg = f"{where}: engine '{plain(record.engine)}' is not in the manifest"
                raise ResultsError(msg)
            if wrong or record.block < 0 or not 0 <= told.requests < 2**53:
                what = f"{wrong[0]} = {told.metrics[wrong[0]]}" if wrong else "a negative block or count"
                msg = f"{where}: expected known metrics above zero, got {what}"
                raise ResultsError(msg)
            key = (record.launch, told.cell)
            if key in found:
                msg = f"{where}: the cell stands in them twice"
                raise ResultsError(msg)
            # As of requests: a number too large to be measured is absent.
            metrics = {name: value for name, value in told.metrics.items() if value < MOST_METRIC}
            found[key] = Told(record.launch, record.engine, record.block, told.cell, metrics, told.requests)
    return tuple(found.values())
