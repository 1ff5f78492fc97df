"""How time and memory grow with the length of the prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import Block, LaunchMeans
from enginecmp_analysis.judge.compare import by_block
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates

Floats = NDArray[np.float64]

LEAST_LENGTHS = 3

LEAST_RANGE = 4.0
"""Longest over shortest prompt below which an exponent says little."""

_WHAT = {"ttft_seconds": "prefill time", "tpot_seconds": "time per decoded token"}


def exponents(group: GroupResult) -> Iterator[Finding]:
    """Yield the exponents with which prefill and decoding grow, fitted block by block.

    One slope of log(time) over log(prompt tokens) a block, a t over blocks: requests of a launch are correlated, so
    a fit through all of them would be far too sure. The exponent holds between the lengths that were measured; a
    fixed cost per request makes it smaller, attention makes it larger than 1.
    """
    for metric, what in _WHAT.items():
        for engine, cells in _families(group, metric):
            slopes = _slopes(cells, lambda cell: math.log(cell.prompt_tokens), math.log)
            if len(slopes) == 0:
                continue
            mean, low, high = mean_interval(slopes)
            lengths = [cell.prompt_tokens for cell in cells]
            limits = f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
            yield Finding(
                scenario=group.context.scenario,
                topic="growth",
                engine=engine,
                cell=None,
                verdict="fitted",
                value=mean,
                ci_low=low,
                ci_high=high,
                n_launches=len(slopes),
                text=f"{what} grows as T^{mean:.2f}{limits} from {min(lengths):,} to {max(lengths):,} tokens",
                details={"shortest_prompt_tokens": float(min(lengths)), "longest_prompt_tokens": float(max(lengths))},
            )


def memory_growth(group: GroupResult) -> Iterator[Finding]:
    """Yield the growth of peak resident memory in bytes a token of prompt and output.

    Only where every cell has a launch of its own: else the highest mark of one cell may be that of the cell before.
    """
    if not group.runs[0].manifest.scenario.get("launch_per_cell"):
        return
    for engine, cells in _families(group, "peak_rss_above_empty_bytes"):
        slopes = _slopes(cells, lambda cell: float(cell.prompt_tokens + cell.output_tokens), lambda value: value)
        if len(slopes) == 0:
            continue
        mean, low, high = mean_interval(slopes)
        limits = f" [{low:,.0f}, {high:,.0f}]" if np.isfinite(low) else ""
        yield Finding(
            scenario=group.context.scenario,
            topic="growth",
            engine=engine,
            cell=None,
            verdict="fitted",
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=len(slopes),
            text=f"peak memory grows by {mean:,.0f} bytes a token{limits}",
        )


def _families(group: GroupResult, metric: str) -> Iterator[tuple[str, dict[Cell, LaunchMeans]]]:
    """Yield each engine with its cells that differ in the prompt alone, if their lengths are far enough apart."""
    for engine in group.context.engines:
        families: dict[Cell, dict[Cell, LaunchMeans]] = {}
        for (label, cell, name), launches in group.means.items():
            if label == engine and name == metric and cell is not None and cell.concurrency == 1 and not cell.arrival:
                families.setdefault(msgspec.structs.replace(cell, prompt_tokens=0), {})[cell] = launches
        for cells in families.values():
            lengths = [cell.prompt_tokens for cell in cells]
            if len(lengths) >= LEAST_LENGTHS and max(lengths) >= LEAST_RANGE * max(1, min(lengths)):
                yield engine, cells


def _slopes(cells: Mapping[Cell, LaunchMeans], x_of: Callable[[Cell], float], y_of: Callable[[float], float]) -> Floats:
    """Return the least-squares slope of every block that has all cells; means of runs where several are pooled."""
    means: list[dict[Block, float]] = [by_block(launches) for launches in cells.values()]
    x = np.array([x_of(cell) for cell in cells], dtype=np.float64)
    x -= x.mean()
    slopes, runs = [], []
    for block in [block for block in means[0] if all(block in other for other in means)]:
        y = np.array([y_of(mean[block]) for mean in means], dtype=np.float64)
        if np.isfinite(y).all():
            slopes.append(float((x * y).sum() / (x * x).sum()))
            runs.append(block[0])
    return replicates(slopes, runs)
