"""Where requests are not all alike, engines are compared on those that all of them answered.

A mean over requests of many lengths says as much of the requests as of the engine: one long request that was flagged
for one engine alone would make it look fast. So a request of a workload counts for the metrics of single requests only
where every engine of its block has it, undisturbed; rates of whole launches rest on their windows as ever.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.files import in_run
from enginecmp_analysis.data.columns import KEPT, MEASURE, Columns

Bools = NDArray[np.bool_]


def shared(columns: Columns, kept: Bools) -> Bools:
    """Return (N,) which samples count beside those of other engines: all that are kept, save unshared requests.

    Args:
        columns: one run.
        kept: (N,) which samples count by themselves.
    """
    numbers = columns.metric("asked_request")
    rows = np.flatnonzero(kept & (columns.phase == MEASURE) & np.isfinite(numbers))
    found = kept.copy()
    if not len(rows):
        return found
    place = np.stack([columns.block[rows], columns.cell[rows]])
    request = np.concatenate([place, numbers[rows].astype(np.int64)[None]])
    have = _engines(request, columns.engine[rows])
    there = _engines(place, columns.engine[rows])
    found[rows[have < there]] = False
    return found


def unshared_note(columns: Columns, path: Path) -> list[str]:
    """Return a sentence on what is left out of a run by `shared`; none where nothing is."""
    kept = columns.excluded == KEPT
    rows = np.flatnonzero(kept & ~shared(columns, kept))
    if not len(rows):
        return []
    of = int((kept & (columns.phase == MEASURE) & np.isfinite(columns.metric("asked_request"))).sum())
    return [
        f"{in_run(path)}: {len(rows)} of {of} unlike requests count for rates alone: another engine of the block "
        "has no undisturbed answer to the same request, so that times of single requests are compared without them"
    ]


def _engines(keys: NDArray[np.int64], engine: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each row, how many engines have a row with its key.

    Args:
        keys: (K, R) whatever makes rows the same.
        engine: (R,) code of the engine.
    """
    _, group = np.unique(keys, axis=1, return_inverse=True)
    group = group.ravel()
    pairs = np.unique(np.stack([group, engine]), axis=1)
    counts: NDArray[np.int64] = np.bincount(pairs[0], minlength=int(group.max()) + 1)
    return counts[group]
