"""What a JSON Schema costs: the same cell with and without one, within each engine."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.judge.compare import by_block
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates

_WHAT = {"tpot_seconds": "time per token", "ttft_seconds": "time to first token"}
_VALID = "valid_json_share"
_DRAWS = {"temperature": 0.0, "top_k": 0, "top_p": 1.0}


def schema_costs(group: GroupResult) -> Iterator[Finding]:
    """Yield for every engine and cell under a JSON Schema how many answers follow it, and what it costs.

    The cost is a metric of that cell over the one of the same cell with the same draws and no schema: one log ratio of
    launch means a block, a t over blocks (over runs where several are pooled). The requests are others, with other
    prompts where both cells share a launch, which the ratio of a block's means bears.
    """
    decodings: dict[str, Any] = group.runs[0].manifest.scenario.get("decodings") or {}
    for engine in group.context.engines:
        for cell in sorted({cell for label, cell, _ in group.means if label == engine and cell is not None}, key=repr):
            if not _rule(decodings, cell).get("json_schema"):
                continue
            yield from _share(group, engine, cell)
            for free in _free_cells(group, engine, cell, decodings):
                for metric in _WHAT:
                    yield from _cost(group, engine, cell, free, metric)


def _rule(decodings: dict[str, Any], cell: Cell) -> dict[str, Any]:
    return decodings.get(cell.decoding, {}) if isinstance(cell.decoding, str) else {}


def _free_cells(group: GroupResult, engine: str, cell: Cell, decodings: dict[str, Any]) -> list[Cell]:
    """Return the engine's cells that differ in the schema and in what ends a request alone; the first one is enough."""

    def plain(other: Cell) -> Cell:
        return msgspec.structs.replace(other, decoding=msgspec.UNSET)

    def draws(other: Cell) -> list[Any]:
        return [_rule(decodings, other).get(key, default) for key, default in _DRAWS.items()]

    found = {other for label, other, _ in group.means if label == engine and other is not None}
    alike = (
        other
        for other in sorted(found, key=repr)
        if not _rule(decodings, other).get("json_schema") and plain(other) == plain(cell)
    )
    return [other for other in alike if draws(other) == draws(cell)][:1]


def _share(group: GroupResult, engine: str, cell: Cell) -> Iterator[Finding]:
    launches = group.means.get((engine, cell, _VALID))
    if launches is None:
        return
    values = launches.values
    share = float(values.mean())
    yield Finding(
        scenario=group.context.scenario,
        topic="structured output",
        engine=engine,
        cell=cell,
        verdict="all valid" if share == 1 else "not all valid",
        value=share,
        ci_low=math.nan,
        ci_high=math.nan,
        n_launches=len(launches.means),
        text=f"{int(values.sum())} of {len(values)} answers end and follow the JSON Schema",
        notable=share < 1,
    )


def _cost(group: GroupResult, engine: str, cell: Cell, free: Cell, metric: str) -> Iterator[Finding]:
    on, off = (group.means.get((engine, each, metric)) for each in (cell, free))
    if on is None or off is None:
        return
    with_schema, without = by_block(on), by_block(off)
    blocks = [block for block in with_schema if with_schema[block] > 0 and without.get(block, 0.0) > 0]
    if not blocks:
        return
    logs = replicates(
        [math.log(with_schema[block] / without[block]) for block in blocks], [block[0] for block in blocks]
    )
    ratio, low, high = (math.exp(value) for value in mean_interval(logs))
    certain = bool(np.isfinite(low) and np.isfinite(high))
    verdict = "open" if not certain or low <= 1 <= high else ("slower" if ratio > 1 else "faster")
    limits = f" [{low:.3f}, {high:.3f}]" if certain else ""
    yield Finding(
        scenario=group.context.scenario,
        topic="structured output",
        engine=engine,
        cell=cell,
        verdict=verdict,
        value=ratio,
        ci_low=low,
        ci_high=high,
        n_launches=len(logs),
        text=f"{_WHAT[metric]} with the JSON Schema: {ratio:.3f}× that without{limits}",
    )
