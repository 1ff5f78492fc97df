"""Launch by launch: what the intervals rest on, and whether the machine drifted meanwhile."""

from __future__ import annotations

import plotly.graph_objects as go

from enginecmp_analysis.context import GroupResult
from enginecmp_analysis.data.launches import Block
from enginecmp_analysis.pictures.picture import Picture, View, Where, draw, labels, line_of, places, plain


def launches(group: GroupResult) -> Picture | None:
    """Draw the mean of every launch over the blocks; None where no engine has two launches."""
    numbers = {block: n for n, block in enumerate(sorted({b for means in group.means.values() for b in means.blocks}))}
    where = [at for at in places(group) if _longest(group, at) > 1]
    if not where:
        return None
    names = labels(where)
    views = [View(names[at], _traces(group, at, numbers), "block, in the order measured", at[1]) for at in where]
    return Picture(
        "launches",
        "Launch by launch",
        "One point is one launch, a process of its own; launches of one block ran right after one another, in random "
        "order. Lines that move together are the machine, which the paired comparison takes out; a slope is drift.",
        draw(views, yaxis={"rangemode": "tozero"}),
    )


def _longest(group: GroupResult, at: Where) -> int:
    return max(len(means.means) for (_, cell, metric), means in group.means.items() if (cell, metric) == at)


def _traces(group: GroupResult, at: Where, numbers: dict[Block, int]) -> list[go.Scatter]:
    traces = []
    for number, engine in enumerate(group.context.engines):
        found = group.means.get((engine, *at))
        if found is None:
            continue
        traces.append(
            go.Scatter(
                x=[numbers[block] + 1 for block in found.blocks],
                y=found.means,
                mode="lines+markers",
                name=plain(engine),
                line={**line_of(number), "width": 1.5},
                marker={"size": 8},
                customdata=found.requests,
                hovertemplate="block %{x}: %{y:.4g}, %{customdata} requests<extra>" + plain(engine) + "</extra>",
            )
        )
    return traces
