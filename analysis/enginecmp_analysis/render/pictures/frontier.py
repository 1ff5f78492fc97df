"""Speed against memory and against quality, of every model and setting; who is dominated is hollow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import plotly.graph_objects as go

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.decisions.frontier import FrontierRow, Value
from enginecmp_analysis.decisions.pareto import MEMORY
from enginecmp_analysis.render.pictures.picture import Picture, View, marker_of, plain, scale_for


def frontier_picture(rows: Sequence[FrontierRow]) -> Picture | None:
    """Draw the frontier of every cell; None where no cell has two points with memory or quality."""
    cells = dict.fromkeys((row.scenario, row.cell) for row in rows)
    views = [view for scenario, cell in cells for view in _views(rows, scenario, cell)]
    if not views:
        return None
    return Picture(
        "frontier",
        "Which setting for which purpose?",
        "One point is one model with one setting, with 95 % limits. Hollow ones are dominated: another one is shown to "
        "be no worse in anything, and better in something.",
        views,
    )


def _views(rows: Sequence[FrontierRow], scenario: str, cell: Cell) -> Iterator[View]:
    mine = [row for row in rows if (row.scenario, row.cell) == (scenario, cell)]
    with_memory = [row for row in mine if row.memory is not None]
    if len(with_memory) > 1:
        scale, title = scale_for(MEMORY, max(row.memory.mean for row in with_memory if row.memory is not None))
        yield _view(with_memory, "memory", title, lambda row: row.memory, scale)
    with_quality = [row for row in mine if row.lost_nats is not None]
    if len(with_quality) > 1:
        yield _view(with_quality, "quality", "nats a token more than the reference", lambda row: row.lost_nats, 1.0)


def _view(
    rows: Sequence[FrontierRow], against: str, title: str, other: Callable[[FrontierRow], Value | None], scale: float
) -> View:
    place = short_name(rows[0].cell)
    size, y = scale_for(rows[0].metric, max(row.speed.mean for row in rows))
    traces = []
    for number, model in enumerate(dict.fromkeys(row.model for row in rows)):
        own = [(row, value) for row in rows if row.model == model and (value := other(row)) is not None]
        marker = marker_of(number)
        symbols = [f"{marker['symbol']}-open" if row.dominated_by else marker["symbol"] for row, _ in own]
        traces.append(
            go.Scatter(
                x=[value.mean / scale for _, value in own],
                y=[row.speed.mean / size for row, _ in own],
                error_x=_bars([value for _, value in own], scale),
                error_y=_bars([row.speed for row, _ in own], size),
                mode="markers",
                name=plain(model),
                marker={**marker, "symbol": symbols, "size": 10},
                text=[
                    plain(row.engine + (f": dominated by {row.dominated_by}" if row.dominated_by else ""))
                    for row, _ in own
                ],
                hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra>" + plain(model) + "</extra>",
            )
        )
    return View(f"{place}, {against}", f"Speed against {against} ({place})", traces, title, y)


def _bars(values: Sequence[Value], scale: float) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [(value.high - value.mean) / scale for value in values],
        "arrayminus": [(value.mean - value.low) / scale for value in values],
        "thickness": 1,
    }
