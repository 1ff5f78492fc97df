"""Launch by launch: what the intervals rest on, and whether the machine drifted meanwhile."""

from __future__ import annotations

import math

import plotly.graph_objects as go

from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import Block, LaunchMeans
from enginecmp_analysis.render.pictures.picture import (
    Picture,
    View,
    Where,
    line_of,
    marker_of,
    place_name,
    places,
    plain,
    scale_for,
)

MOST_TICKS = 10


def launches(group: GroupResult) -> Picture | None:
    """Draw the mean of every launch over the blocks; None where no engine has two launches."""
    numbers = {block: n for n, block in enumerate(sorted({b for means in group.means.values() for b in means.blocks}))}
    views = [_view(group, at, numbers) for at in places(group) if max(map(_length, _found(group, at).values())) > 1]
    if not views:
        return None
    return Picture(
        "launches",
        "How far can the numbers be trusted?",
        "One point is one launch, a process of its own; launches of one block ran right after one another, in random "
        "order. Lines that move together are the machine, which the paired comparison takes out; a slope is drift.",
        views,
    )


def _length(means: LaunchMeans) -> int:
    return len(means.means)


def _found(group: GroupResult, at: Where) -> dict[int, LaunchMeans]:
    """Return the launch means of a place by the number of their engine."""
    found = ((number, group.means.get((engine, *at))) for number, engine in enumerate(group.context.engines))
    return {number: means for number, means in found if means is not None}


def _view(group: GroupResult, at: Where, numbers: dict[Block, int]) -> View:
    cell, metric = at
    found = _found(group, at)
    engines = [plain(engine) for engine in group.context.engines]
    scale, axis = scale_for(metric, max(float(abs(means.means).max()) for means in found.values()))
    traces = [
        go.Scatter(
            x=[numbers[block] + 1 for block in means.blocks],
            y=means.means / scale,
            mode="lines+markers",
            name=engines[number],
            line={**line_of(number), "width": 1.5},
            marker=marker_of(number),
            customdata=means.requests,
            hovertemplate=f"block %{{x}}: %{{y:.4g}}, %{{customdata}} requests<extra>{engines[number]}</extra>",
        )
        for number, means in found.items()
    ]
    name = place_name(cell, metric)
    more = {"yaxis": {"rangemode": "tozero"}, "xaxis": {"dtick": max(1, math.ceil(len(numbers) / MOST_TICKS))}}
    return View(name, f"Launch by launch: {name}", traces, "block, in the order measured", axis, layout=more)
