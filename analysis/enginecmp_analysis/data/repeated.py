"""Launches that were repeated because the machine disturbed them, and those that could not begin.

For each block one of the repeated ones counts, never both.

Which one is told by flags and failures alone: the one with the smaller share of requests that do not count, and of
equals the earlier. No measured value has a say, so the choice favours no engine (docs/METHODOLOGY.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.readers import finished_launches
from enginecmp.format.records import NOT_BEGUN
from enginecmp.format.text import plain
from enginecmp_analysis.data.checks import only
from enginecmp_analysis.data.columns import KEPT, LOAD, MEASURE, Columns

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NAMED = 3
"""Launches that are named; the others are counted."""


def without_repeated(columns: Columns) -> tuple[Columns, tuple[str, ...]]:
    """Leave out, cell by cell, what another launch of the same engine and block stands for.

    Args:
        columns: a run, its impossible lines left out.

    Returns:
        The columns that are left, and a sentence about the launches that were repeated; none where none was.
    """
    if not columns.replaces:
        return columns, ()
    keep = np.ones(len(columns), dtype=bool)
    replaced: list[str] = []
    families = list(_families(columns))
    for family in families:
        for rows in _units(columns, family):
            launches = columns.launch[rows]
            present = [code for code in family if (launches == code).any()]
            counts = {code: _lost_share(columns, rows[launches == code]) for code in present}
            best = min(present, key=lambda code: (counts[code], family.index(code)))
            keep[rows[launches != best]] = False
            if best != family[0] and (name := _place(columns, family[0])) not in replaced:
                replaced.append(name)
    told = ", ".join(replaced[:NAMED]) + (f" and {len(replaced) - NAMED} more" if len(replaced) > NAMED else "")
    many = "launch was" if len(families) == 1 else "launches were"
    note = f"{len(families)} disturbed {many} repeated; the repetition counts for {told or 'none of them'}"
    return only(columns, keep), (note,) if families else ()


def not_begun(folder: Path) -> list[str]:
    """Return a sentence for every engine and reason for which launches of a run never began.

    A cold load that the machine refuses is no failure of the engine, and has no sample.
    """
    found: Counter[tuple[str, str]] = Counter()
    for record in finished_launches(folder):
        if record.error and record.error.startswith(NOT_BEGUN):
            found[record.engine, record.error.removeprefix(NOT_BEGUN)] += 1
    return [
        f"{plain(engine)}: {count} launch{'es' if count > 1 else ''} not begun: {plain(why)}"
        for (engine, why), count in found.items()
    ]


def _place(columns: Columns, launch: int) -> str:
    """Return how a launch is named to people, who count blocks from 1."""
    row = int(np.argmax(columns.launch == launch))
    return f"{plain(columns.engines[int(columns.engine[row])])} in block {int(columns.block[row]) + 1}"


def _families(columns: Columns) -> Iterator[list[int]]:
    """Yield the codes of a launch and of those that repeat it, in the order in which they were run."""
    codes = {name: code for code, name in enumerate(columns.launches)}
    first = {code: int(np.argmax(columns.launch == code)) for code in range(len(columns.launches))}
    present = set(np.unique(columns.launch).tolist())
    found: dict[int, list[int]] = {}
    for name, replaced in columns.replaces.items():
        code, root = codes[name], codes.get(replaced)
        if root is None or root == code or not {root, code} <= present:
            continue
        row, other = first[code], first[root]
        # What claims to repeat another engine's launch, or another block's, is a launch of its own.
        if columns.engine[row] == columns.engine[other] and columns.block[row] == columns.block[other]:
            found.setdefault(root, [root]).append(code)
    yield from found.values()


def _units(columns: Columns, family: list[int]) -> Iterator[Ints]:
    """Yield the rows of some launches, cell by cell, and those of their loads."""
    rows = np.flatnonzero(np.isin(columns.launch, family))
    loads = columns.phase[rows] == LOAD
    yield rows[loads]
    for cell in np.unique(columns.cell[rows[~loads]]):
        yield rows[~loads & (columns.cell[rows] == cell)]


def _lost_share(columns: Columns, rows: Ints) -> float:
    """Return which share of a launch's requests does not count; more than all of them where it measured none."""
    counting = rows[(columns.phase[rows] == MEASURE) | (columns.phase[rows] == LOAD)]
    return float((columns.excluded[counting] != KEPT).mean()) if len(counting) else 2.0
