"""Single requests: which share of them was at most so slow."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from enginecmp_analysis.context import GroupResult
from enginecmp_analysis.metrics import metric_of
from enginecmp_analysis.pictures.picture import Picture, View, Where, draw, labels, line_of, places, plain

LEAST_VALUES = 10
MOST_POINTS = 500
"""Of a line: more cannot be told apart on a screen."""


def spread(group: GroupResult) -> Picture | None:
    """Draw the distribution of single values over all launches; None where no metric has one a request."""
    drawn = {at: _traces(group, at) for at in places(group, lambda metric: metric_of(metric).per != "launch")}
    drawn = {at: traces for at, traces in drawn.items() if traces}
    if not drawn:
        return None
    names = labels(drawn)
    views = [View(names[at], traces, at[1], "share of requests at or below") for at, traces in drawn.items()]
    figure = draw(views, yaxis={"tickformat": ".0%", "range": [0, 1.01]})
    return Picture(
        "spread",
        "Single requests",
        "Where a line crosses 50 % is the median, where it crosses 90 % the p90. A step is a mode of its own, a long "
        "tail to the right are the requests that users complain of. Requests of one launch are alike: the verdicts "
        "rest on launches, not on these.",
        figure,
    )


def _traces(group: GroupResult, at: Where) -> list[go.Scatter]:
    traces = []
    for number, engine in enumerate(group.context.engines):
        found = group.means.get((engine, *at))
        if found is None or len(found.values) < LEAST_VALUES:
            continue
        values = np.sort(found.values)
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(np.int64))
        traces.append(
            go.Scatter(
                x=values[kept],
                y=(kept + 1) / len(values),
                mode="lines",
                name=f"{plain(engine)} ({len(values)})",
                line={**line_of(number), "shape": "hv", "width": 2},
                hovertemplate="%{y:.1%} at most %{x:.4g}<extra>" + plain(engine) + "</extra>",
            )
        )
    return traces
