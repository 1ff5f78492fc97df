"""Where requests end by themselves, engines may answer the same request with other numbers of tokens: unequal work.

Times of tokens are compared as ever. The time of a whole request is compared on the requests that all engines of the
block answered with equally many tokens; rates of whole requests, and waiting for them, are not compared at all where
some differ. What is shown of one engine is shown of all its requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE, Columns
from enginecmp_analysis.data.launches import Key, LaunchMeans, launch_means
from enginecmp_analysis.data.load import Run

Bools = NDArray[np.bool_]

ON_EQUAL_LENGTHS = "e2e_seconds"
NOT_COMPARED = (
    "queue_seconds",
    "requests_per_second",
    "goodput_requests_per_second",
    "saturation_requests_per_second",
    "scaling_efficiency",
)
WITH_PREFILL = ("throughput_tokens_per_second", "goodput_tokens_per_second", "throughput_tokens_per_second_per_gpu")
"""Rates of tokens that hold the prefill too, which longer answers spread over more tokens."""


class Lengths(NamedTuple):
    """Requests of a cell that end by themselves, which two engines of a block or more answered.

    Attributes:
        shared: how many.
        alike: of these, how many all engines answered with equally many tokens.
    """

    shared: int
    alike: int

    @property
    def differ(self) -> bool:
        """Whether engines did unequal work."""
        return self.alike < self.shared


def ends_itself(columns: Columns) -> Bools:
    """Return (N,) which samples are of requests that may end before they have all their tokens."""
    found: Bools = columns.metric("asked_may_end") == 1
    return found


def lengths_of(runs: Sequence[Run], kept: Sequence[Bools]) -> dict[Cell, Lengths]:
    """Return the cells whose requests may end by themselves, with how the engines' lengths agree.

    Args:
        runs: pooled runs.
        kept: for every run (N,) which samples count.
    """
    found: dict[Cell, Lengths] = {}
    for run, mask in zip(runs, kept, strict=True):
        columns = run.columns
        rows, several, alike, first = _shared(columns, mask)
        for code in np.unique(columns.cell[rows]).tolist():
            here = (columns.cell[rows] == code) & several & first
            before = found.get(columns.cells[code], Lengths(0, 0))
            found[columns.cells[code]] = Lengths(
                before.shared + int(here.sum()), before.alike + int((here & alike).sum())
            )
    return found


def comparable(
    runs: Sequence[Run], kept: Sequence[Bools], means: Mapping[Key, LaunchMeans], lengths: Mapping[Cell, Lengths]
) -> dict[Key, LaunchMeans]:
    """Return the launch means that engines may be compared by.

    Args:
        runs: pooled runs.
        kept: for every run (N,) which samples count.
        means: what is shown of each engine.
        lengths: from `lengths_of`.
    """
    uneven = {cell for cell, found in lengths.items() if found.differ}
    if not uneven:
        return dict(means)
    masks = []
    for run, mask in zip(runs, kept, strict=True):
        rows, _, alike, _ = _shared(run.columns, mask)
        equal = mask.copy()
        equal[rows[~alike]] = False
        masks.append(equal)
    left_out = {ON_EQUAL_LENGTHS, *NOT_COMPARED}
    found = {key: value for key, value in means.items() if key[1] not in uneven or key[2] not in left_out}
    equal_work = launch_means(runs, [ON_EQUAL_LENGTHS], masks)
    return found | {key: value for key, value in equal_work.items() if key[1] in uneven}


def lengths_note(lengths: Lengths) -> str:
    """Return what a reader of a cell's table must know."""
    if not lengths.shared:
        return "requests end by themselves; no two engines answered the same one"
    if not lengths.differ:
        return (
            f"requests end by themselves, each after equally many tokens in all engines ({lengths.shared} requests): "
            "equal work"
        )
    return (
        f"requests end by themselves: {lengths.alike} of {lengths.shared} have equally many tokens in all engines; "
        f"{ON_EQUAL_LENGTHS} is compared on those alone, {', '.join(NOT_COMPARED[1:3])} are not compared, and "
        "throughput and goodput in tokens spread prefill over other numbers of tokens: compare tpot_seconds and "
        "ttft_seconds"
    )


def _shared(columns: Columns, kept: Bools) -> tuple[NDArray[np.int64], Bools, Bools, Bools]:
    """Return the rows (R,) of requests that may end by themselves, and of each three facts.

    Returns:
        Rows; whether two engines or more have the request; whether all have equally many tokens; whether the row is the
        first of its request.
    """
    numbers = columns.metric("asked_request")
    rows = np.flatnonzero(kept & (columns.phase == MEASURE) & ends_itself(columns) & np.isfinite(numbers))
    if not len(rows):
        nothing = np.zeros(0, dtype=bool)
        return rows, nothing, nothing, nothing
    keys = np.stack([columns.block[rows], columns.cell[rows], numbers[rows].astype(np.int64)])
    _, index, group = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    group = group.ravel()
    engines = np.unique(np.stack([group, columns.engine[rows]]), axis=1)[0]
    several = np.bincount(engines, minlength=len(index))[group] > 1
    tokens = columns.output_tokens[rows]
    least, most = np.full(len(index), np.iinfo(np.int64).max), np.zeros(len(index), dtype=np.int64)
    np.minimum.at(least, group, tokens)
    np.maximum.at(most, group, tokens)
    first = np.zeros(len(rows), dtype=bool)
    first[index] = True
    return rows, several, (least == most)[group], first
