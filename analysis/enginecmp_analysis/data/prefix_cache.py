"""How much of its prompts an engine found in its prefix cache, beside how much there was to find."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginecmp_analysis.data.cells import is_concurrent
from enginecmp_analysis.data.columns import Columns
from enginecmp_analysis.data.windows import Place

Floats = NDArray[np.float64]

HIT, KNOWN = "prefix_cache_hit_share", "known_prompt_share"


def prompt_shares(columns: Columns, place: Place, *, batching: bool) -> dict[str, Floats]:
    """Return (L,) shares of prompt tokens by metric, one a launch; NaN where the engine does not tell.

    With one request at a time both are over the requests that count. In a cell with several in flight an engine that
    batches tells one number for all of them, warm-up included, and both shares are over all; one that queues tells
    nothing of the cell.

    Args:
        columns: the run.
        place: engine and cell.
        batching: whether the engine batches by itself.
    """
    hits, known = columns.metric("prefix_cache_hit_tokens"), columns.metric("asked_known_tokens")
    told = columns.metric("cached_prompt_tokens")
    several = is_concurrent(place.cell)
    found: dict[str, list[float]] = {HIT: [], KNOWN: []}
    for part, launch in zip(place.parts(columns), place.found.launch.tolist(), strict=True):
        rows = place.well[columns.launch[place.well] == launch] if several else part
        tokens = float(columns.prompt_tokens[rows].sum())
        if not several:
            of_requests = np.where(np.isnan(hits[rows]), told[rows], hits[rows])
            had = float(of_requests.sum())
        else:
            had = float(hits[part[0]]) if batching else np.nan
        found[HIT].append(had / tokens if tokens else np.nan)
        found[KNOWN].append(float(known[rows].sum()) / tokens if tokens else np.nan)
    return {name: np.array(values) for name, values in found.items()}
