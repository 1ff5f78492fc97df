"""The machine while it was measured: what its sensors told, with the launches behind it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from enginecmp_analysis.context import GroupResult
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.pictures.picture import COLOURS, FRAME, Picture, line_of, plain

UNITS = {"busy_cores": "busy cores", "busy_share": "busy share", "mhz": "MHz", "celsius": "°C", "watts": "W"}
"""Endings of the series that are drawn, and the titles of their axes; counters of energy only rise."""

ROW_HEIGHT = 140
MOST_LAUNCHES = 150
"""More bands than that are no picture any more."""

MOST_POINTS = 2000


def machine(group: GroupResult) -> Picture | None:
    """Draw the sensors of the group's first run that has any; None without one."""
    run = next((run for run in group.runs if run.telemetry is not None and _drawn(run) and len(run.columns)), None)
    if run is None or run.telemetry is None:
        return None
    drawn = _drawn(run)
    zero = int(run.columns.start_ns.min())
    figure = make_subplots(rows=len(drawn), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    for row, (title, names) in enumerate(drawn.items(), start=1):
        for number, name in enumerate(names):
            times, values = run.telemetry.series[name]
            step = max(1, len(times) // MOST_POINTS)
            figure.add_trace(
                go.Scatter(
                    x=(times[::step] - zero) * 1e-9,
                    y=values[::step],
                    mode="lines",
                    name=name,
                    line={**line_of(number), "width": 1.2},
                    showlegend=False,
                    hovertemplate="%{x:.1f} s: %{y:.4g}<extra>" + name + "</extra>",
                ),
                row=row,
                col=1,
            )
        figure.update_yaxes(title_text=title, row=row, col=1, rangemode="tozero", automargin=True)
    figure.update_xaxes(title_text="seconds since the first request", row=len(drawn), col=1)
    figure.update_layout(
        **FRAME,
        height=90 + ROW_HEIGHT * len(drawn),
        margin={"l": 10, "r": 20, "t": 16, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        shapes=list(_bands(group, run, zero)),
    )
    for number, engine in enumerate(group.context.engines):
        marker = {"color": COLOURS[number % len(COLOURS)], "symbol": "square", "size": 11, "opacity": 0.4}
        figure.add_trace(
            go.Scatter(x=[None], y=[None], mode="markers", name=plain(engine), marker=marker), row=1, col=1
        )
    return Picture(
        "machine",
        "The machine meanwhile",
        f"Sensors of run {run.manifest.run_id}; a band is a launch of the engine with its colour. What happens in "
        "bands of one colour only belongs to that engine; what happens across them belongs to the machine.",
        figure,
    )


def _drawn(run: Run) -> dict[str, list[str]]:
    """Return the series that are drawn, by the title of their axis."""
    found: dict[str, list[str]] = {}
    for name, (times, _) in sorted(run.telemetry.series.items() if run.telemetry else ()):
        title = next((title for ending, title in UNITS.items() if name.endswith(f"_{ending}")), None)
        if title is not None and len(times) > 1:
            found.setdefault(title, []).append(name)
    return found


def _bands(group: GroupResult, run: Run, zero: int) -> Iterator[dict[str, object]]:
    columns = run.columns
    if len(columns.launches) > MOST_LAUNCHES:
        return
    engines = list(group.context.engines)
    for code in range(len(columns.launches)):
        rows = np.flatnonzero(columns.launch == code)
        engine = columns.engines[columns.engine[rows[0]]] if len(rows) else ""
        if engine in engines:
            yield {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "y0": 0,
                "y1": 1,
                "x0": (int(columns.start_ns[rows].min()) - zero) * 1e-9,
                "x1": (int(columns.end_ns[rows].max()) - zero) * 1e-9,
                "fillcolor": COLOURS[engines.index(engine) % len(COLOURS)],
                "opacity": 0.14,
                "line_width": 0,
                "layer": "below",
            }
