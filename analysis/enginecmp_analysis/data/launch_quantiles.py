"""Quantiles of single launches, in the place of their means."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.statistics.quantiles import SHOWN, harrell_davis, needed_per_launch


def quantile_launches(
    means: dict[Key, LaunchMeans], metrics: Iterable[str]
) -> tuple[dict[Key, LaunchMeans], list[str]]:
    """Return quantiles of each launch (Harrell-Davis) in place of its mean, named like "ttft_seconds_p90".

    A launch with too few values for a quantile has none; a metric of one value a launch has none at all.

    Returns:
        The launches, and a note for every quantile that no launch was long enough for.
    """
    names = {name for name in metrics if METRICS[name].per != "launch"}
    found: dict[Key, LaunchMeans] = {}
    for (engine, cell, name), launches in means.items():
        if name not in names:
            continue
        parts = launches.per_launch()
        for q in SHOWN:
            enough = [i for i, part in enumerate(parts) if len(part) >= needed_per_launch(q)]
            if enough:
                found[engine, cell, f"{name}_p{round(100 * q)}"] = LaunchMeans(
                    blocks=[launches.blocks[i] for i in enough],
                    means=np.array([harrell_davis(parts[i], q) for i in enough]),
                    counts=launches.counts[enough],
                    requests=launches.requests[enough],
                    values=np.concatenate([parts[i] for i in enough]),
                )
    present = {label for _, _, label in found}
    notes = []
    for q in SHOWN:
        missing = [name for _, _, name in means if name in names and f"{name}_p{round(100 * q)}" not in present]
        if missing:
            which = ", ".join(dict.fromkeys(missing))
            notes.append(f"p{round(100 * q)}: n/a (need {needed_per_launch(q)} values a launch) for {which}")
    return found, notes
