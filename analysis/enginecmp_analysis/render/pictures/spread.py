"""Single requests: which share of them was at most so slow."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.metrics import metric_of
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

LEAST_VALUES = 10
MOST_POINTS = 500
"""Of a line: more cannot be told apart on a screen."""

MOST_MARKERS = 6
"""Of a line: enough to see whose it is without colours."""


def spread(group: GroupResult) -> Picture | None:
    """Draw the distribution of single values over all launches; None where no metric has one a request."""
    views = [
        view
        for at in places(group, lambda metric: metric_of(metric).per != "launch")
        if (view := _view(group, at)) is not None
    ]
    if not views:
        return None
    return Picture(
        "spread",
        "What does a single request see?",
        "Where a line crosses 50 % is the median, where it crosses 90 % the p90. A step is a mode of its own, a long "
        "tail to the right are the requests that users complain of. Requests of one launch are alike: the verdicts "
        "rest on launches, not on these.",
        views,
    )


def _view(group: GroupResult, at: Where) -> View | None:
    cell, metric = at
    found = ((number, engine, group.means.get((engine, *at))) for number, engine in enumerate(group.context.engines))
    drawn = [(n, engine, m.values) for n, engine, m in found if m is not None and len(m.values) >= LEAST_VALUES]
    if not drawn:
        return None
    scale, axis = scale_for(metric, max(float(abs(values).max()) for _, _, values in drawn))
    traces = []
    for number, engine, unsorted in drawn:
        values = np.sort(unsorted)
        kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), MOST_POINTS)).round().astype(np.int64))
        traces.append(
            go.Scatter(
                x=values[kept] / scale,
                y=(kept + 1) / len(values),
                mode="lines+markers",
                name=f"{plain(engine)} ({len(values)})",
                line={**line_of(number), "shape": "hv", "width": 2},
                marker={**marker_of(number), "maxdisplayed": MOST_MARKERS},
                hovertemplate="%{y:.1%} at most %{x:.4g}<extra>" + plain(engine) + "</extra>",
            )
        )
    name = place_name(cell, metric)
    more = {"yaxis": {"tickformat": ".0%", "range": [0, 1.01]}}
    return View(name, f"Share of requests at or below: {name}", traces, axis, "share at or below", layout=more)
