"""Does an engine answer a repeated prompt from a cache? Then a benchmark with repeated prompts measures the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from enginecmp.format.flags import Flag
from enginecmp_analysis.data.columns import KEPT, WARMUP
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.stamps import request_times
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates

CACHED = 0.7
"""A repeated prompt is answered from a cache when its prefill takes clearly less than this share of the first."""


def repeated_prompts(group: GroupResult) -> Iterator[Finding]:
    """Yield for every engine what a repeated prompt takes, as a share of the same prompt sent for the first time.

    Each launch sends a fresh prompt and then the same one again, after everything that is measured: one log ratio
    of prefill times a launch, a t over launches, or over runs where several are pooled. Told only where the whole
    interval lies below `CACHED`.
    """
    logs: dict[str, list[tuple[int, float]]] = {}  # run, log ratio
    for number, run in enumerate(group.runs):
        columns = run.columns
        prefill = request_times(columns).prefill
        again = columns.flagged(Flag.REPEATED_PROMPT) & (columns.phase == WARMUP)
        # Another flag beside it says that the machine was disturbed.
        again &= np.isin(
            columns.excluded, [i for i, reason in enumerate(columns.reasons) if reason == Flag.REPEATED_PROMPT]
        )
        order = np.lexsort((columns.start_ns, columns.launch))
        for at in np.flatnonzero(again[order]).tolist():
            if at == 0:
                continue
            first, second = int(order[at - 1]), int(order[at])
            alike = columns.launch[first] == columns.launch[second] and columns.excluded[first] == KEPT
            if alike and prefill[first] > 0 and prefill[second] > 0:
                engine = columns.engines[int(columns.engine[second])]
                logs.setdefault(engine, []).append((number, math.log(prefill[second] / prefill[first])))
    for engine, found in logs.items():
        runs, values = zip(*found, strict=True)
        mean, low, high = (math.exp(x) for x in mean_interval(replicates(values, runs)))
        cached = math.isfinite(high) and high < CACHED
        limits = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
        yield Finding(
            scenario=group.context.scenario,
            topic="prefix cache",
            engine=engine,
            cell=None,
            verdict="cached" if cached else "not cached",
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=len(found),
            text=f"answers repeated prompts from a cache: {mean:.2f}× the prefill time of a new one{limits}"
            if cached
            else f"a repeated prompt takes {mean:.2f}× the prefill time of a new one{limits}",
            notable=cached,
        )
