"""What is kept of a run where there are thousands: its manifest and launch means, no single request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from enginecmp_analysis.data.columns import Columns
from enginecmp_analysis.data.group import GroupResult


def lean(group: GroupResult, metrics: Collection[str]) -> GroupResult:
    """Return an analysed run with the launch means of some metrics, without what grows with its requests.

    Args:
        group: of one run.
        metrics: names.
    """
    (run,) = group.runs
    means = {
        key: replace(launches, values=launches.means, counts=np.ones(len(launches.means), np.int64))
        for key, launches in group.means.items()
        if key[2] in metrics
    }
    runs = [replace(run, columns=_outline(run.columns), telemetry=None)]
    return GroupResult(group.context, runs, means, {}, [], [])


def _outline(columns: Columns) -> Columns:
    """Return one sample of each block and cell: what says where a run's blocks stand, and what its cells are."""
    number = columns.block * max(1, len(columns.cells)) + columns.cell
    rows = np.sort(np.unique(number, return_index=True)[1])
    one_each = {
        name: getattr(columns, name)[rows]
        for name in (
            *("engine", "launch", "cell", "block", "order", "index", "phase", "excluded"),
            *("intended_ns", "start_ns", "end_ns", "prompt_tokens", "output_tokens"),
        )
    }
    return replace(
        columns,
        **one_each,
        offsets=np.zeros(len(rows) + 1, np.int64),
        token_ns=np.zeros(0, np.int64),
        launches=(),
        metrics={},
        errors={},
    )
