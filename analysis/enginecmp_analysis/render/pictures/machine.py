"""The machine while it was measured: what its sensors told during launches, and which engine was running."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.telemetry import Floats, Ints
from enginecmp_analysis.render.pictures.picture import COLOURS, DASHES, QUIET, Picture, View, marker_of, plain

UNITS = {
    **{"busy_cores": "busy cores", "busy_share": "busy share", "mhz": "MHz", "celsius": "°C", "watts": "W"},
    **{"requests_running": "requests in the server", "requests_waiting": "requests in the server"},
    "kv_used_share": "share of the KV cache",
}
"""Endings of the series that are drawn, and the titles of their axes; counters of energy only rise."""

ROW_HEIGHT = 150
MOST_LAUNCHES = 150
"""More bands than that are no picture any more."""

MOST_POINTS = 2000

Spans = dict[int, tuple[int, int, int]]
"""Launch to the number of its engine, its begin and its end in nanoseconds."""


def machine(group: GroupResult) -> Picture | None:
    """Draw the sensors of every run of a group that has any, while launches ran; None without one.

    What sensors told outside of launches, such as during the equivalence gate, is left out.
    """
    views = [view for run in group.runs if (view := _view(group, run)) is not None]
    if not views:
        return None
    return Picture(
        "machine",
        "How far can the numbers be trusted?",
        "A band, with the mark of its engine on top, is a launch; the gate before the first one is not shown. What "
        "happens in bands of one engine only belongs to that engine; what happens across them belongs to the machine.",
        views,
    )


def _view(group: GroupResult, run: Run) -> View | None:
    spans = _spans(list(group.context.engines), run)
    drawn = _drawn(run, spans)
    if not drawn:
        return None
    zero = min(begin for _, begin, _ in spans.values())
    rows = len(drawn)
    axes = ["y" if row == 0 else f"y{row + 1}" for row in range(rows)]
    traces = list(_marks(group, spans, zero))
    layout: dict[str, Any] = {
        "shapes": list(_bands(spans, zero)) if len(spans) <= MOST_LAUNCHES else [],
        # The row of marks is the thin one on top; they share the first axis of time.
        "yaxis9": {"domain": [0.94, 1], "visible": False, "range": [-1, 1], "fixedrange": True},
        "xaxis": {"anchor": axes[-1]},
    }
    for row, (title, names) in enumerate(drawn.items()):
        top, height = 0.92 - row * 0.92 / rows, 0.92 / rows
        axis = f"yaxis{row + 1}" if row else "yaxis"
        layout[axis] = {
            "domain": [max(0.0, top - height), top - 0.1 * height],
            "title": {"text": title},
            "rangemode": "tozero",
        }
        for number, (name, (times, values)) in enumerate(names.items()):
            traces.append(
                go.Scatter(
                    x=(times - zero) * 1e-9,
                    y=values,
                    yaxis=axes[row],
                    mode="lines+markers",
                    name=name,
                    connectgaps=False,
                    line={"color": QUIET, "dash": DASHES[number % len(DASHES)], "width": 1.4},
                    marker={"size": 3, "color": QUIET},
                    showlegend=len(names) > 1,
                    hovertemplate="%{x:.1f} s: %{y:.4g}<extra>" + name + "</extra>",
                )
            )
    run_id = run.manifest.run_id
    x = "seconds since the first launch"
    return View(run_id, f"The machine during the launches of {run_id}", traces, x, "", 110 + ROW_HEIGHT * rows, layout)


def _spans(engines: list[str], run: Run) -> Spans:
    columns = run.columns
    spans: Spans = {}
    for code in range(len(columns.launches)):
        rows = np.flatnonzero(columns.launch == code)
        engine = columns.engines[columns.engine[rows[0]]] if len(rows) else ""
        if engine in engines:
            ends = int(columns.start_ns[rows].min()), int(columns.end_ns[rows].max())
            spans[code] = (engines.index(engine), *ends)
    return spans


def _drawn(run: Run, spans: Spans) -> dict[str, dict[str, tuple[Ints, Floats]]]:
    """Return the series that are drawn, by the title of their axis: readings inside launches, a gap between them."""
    found: dict[str, dict[str, tuple[Ints, Floats]]] = {}
    for name, (times, _) in sorted(run.telemetry.series.items() if run.telemetry else ()):
        title = next((title for ending, title in UNITS.items() if name.endswith(f"_{ending}")), None)
        if title is None or run.telemetry is None:
            continue
        step = max(1, len(times) // MOST_POINTS)
        parts = [
            run.telemetry.between(name, begin, end) for _, begin, end in sorted(spans.values(), key=lambda s: s[1])
        ]
        parts = [(stamps[::step], values[::step]) for stamps, values in parts if len(stamps)]
        if sum(len(stamps) for stamps, _ in parts) > 1:
            stamps = np.concatenate([part for found_at, _ in parts for part in (found_at, found_at[-1:])])
            values = np.concatenate([part for _, told in parts for part in (told, [np.nan])])
            found.setdefault(title, {})[name] = (stamps, values)
    return found


def _marks(group: GroupResult, spans: Spans, zero: int) -> Iterator[go.Scatter]:
    """Yield the marks of each engine's launches."""
    for number, engine in enumerate(group.context.engines):
        middles = [((begin + end) / 2 - zero) * 1e-9 for of, begin, end in spans.values() if of == number]
        if middles:
            yield go.Scatter(
                x=middles,
                y=[0.0] * len(middles),
                yaxis="y9",
                mode="markers",
                name=plain(engine),
                marker=marker_of(number),
                hovertemplate="%{x:.1f} s<extra>" + plain(engine) + "</extra>",
            )


def _bands(spans: Spans, zero: int) -> Iterator[dict[str, Any]]:
    for number, begin, end in spans.values():
        yield {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "x0": (begin - zero) * 1e-9,
            "x1": (end - zero) * 1e-9,
            "fillcolor": COLOURS[number % len(COLOURS)],
            "opacity": 0.14,
            "line": {"width": 0},
            "layer": "below",
        }
