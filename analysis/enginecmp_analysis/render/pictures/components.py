"""Where the time goes inside the model: seconds of each component, as each engine tells it of itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order, short_name
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.metrics import COMPONENT_OF
from enginecmp_analysis.render.layout import show_percent, unit_for
from enginecmp_analysis.render.pictures.picture import QUIET, Picture, View, marker_of, plain
from enginecmp_analysis.schema.stats import Summary

ROW_HEIGHT = 46
SPREAD = 0.6
"""Share of a row that its engines take."""


def components(group: GroupResult, summaries: Sequence[Summary]) -> Picture | None:
    """Draw the mean seconds of every component, engines beside each other; None where nothing was profiled."""
    own = [s for s in summaries if s.scenario == group.context.scenario and s.metric in COMPONENT_OF]
    cells = sorted({s.cell for s in own if s.cell is not None}, key=cell_order)
    if not cells:
        return None
    return Picture(
        "components",
        "Where does the time go?",
        "Mean seconds of one pass in each component, with 95 % intervals, as each engine's own profile tells it; point "
        "at one for its share of the engine's sum. Each engine looks in its own way: shares say something, sums less.",
        [_view(group, cell, [s for s in own if s.cell == cell]) for cell in cells],
    )


def _view(group: GroupResult, cell: Cell, rows: Sequence[Summary]) -> View:
    scale, unit = unit_for("_seconds", max(row.mean for row in rows))
    present = [metric for metric in COMPONENT_OF if any(row.metric == metric for row in rows)]
    sums = {engine: sum(row.mean for row in rows if row.engine == engine) for engine in group.context.engines}
    traces, largest = [], []
    for number, engine in enumerate(group.context.engines):
        found = {row.metric: row for row in rows if row.engine == engine}
        own = [found[metric] for metric in present if metric in found]
        if not own:
            continue
        top = max(own, key=lambda row: row.mean)
        largest.append(f"{engine} {COMPONENT_OF[top.metric]} {show_percent(top.mean / sums[engine])}")
        known = [row if math.isfinite(row.ci_low) else None for row in own]
        traces.append(
            go.Scatter(
                x=[row.mean / scale for row in own],
                # Engines below each other, so that none hides behind another one.
                y=[present.index(row.metric) + SPREAD * ((number + 0.5) / len(sums) - 0.5) for row in own],
                mode="markers",
                name=plain(engine),
                marker={**marker_of(number), "size": 10},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [(row.ci_high - row.mean) / scale if row else 0 for row in known],
                    "arrayminus": [(row.mean - row.ci_low) / scale if row else 0 for row in known],
                    "color": QUIET,
                    "thickness": 1.5,
                },
                text=[f"{COMPONENT_OF[row.metric]}: {show_percent(row.mean / sums[engine])}" for row in own],
                hovertemplate="%{text} of its sum, %{x:.4g}<extra>" + plain(engine) + "</extra>",
            )
        )
    where = short_name(cell)
    return View(
        where,
        f"Time of each component, {where}; largest: {', '.join(largest)}",
        traces,
        f"time of one pass, {unit or 's'}",
        "",
        120 + ROW_HEIGHT * len(present),
        {
            "xaxis": {"rangemode": "tozero"},
            # In the order of the forward pass, from the top.
            "yaxis": {
                "range": [len(present) - 0.5, -0.5],
                "tickvals": list(range(len(present))),
                "ticktext": [COMPONENT_OF[metric] for metric in present],
            },
        },
    )
