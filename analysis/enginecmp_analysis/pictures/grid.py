"""Over the cells of a scenario: how a number grows with lengths, users or rate, and what speed costs in waiting."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import plotly.graph_objects as go

from enginecmp.types import Cell
from enginecmp_analysis.context import GroupResult
from enginecmp_analysis.data.cells import cell_order, short_name
from enginecmp_analysis.pictures.picture import Picture, View, draw, line_of, places, plain
from enginecmp_analysis.schema import Summary

AXES = {
    "rate_per_second": "requests sent a second",
    "concurrency": "users",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
"""Fields of a cell that can be an axis, and its title."""

WIDE = 8
"""An axis is logarithmic from so many times its smallest value on."""

WAIT, SPEED = "ttft_seconds", "throughput_tokens_per_second"

Line = tuple[str, list[Summary]]
"""Engine, with what is held fixed where several are drawn, and the summaries along the axis."""


def growth(group: GroupResult, summaries: Sequence[Summary]) -> Picture | None:
    """Draw means over whichever field of the cells varies most; None where none does.

    Args:
        group: what was analysed.
        summaries: of the whole report.
    """
    own = [s for s in summaries if s.scenario == group.context.scenario and s.cell is not None]
    field = _axis({s.cell for s in own if s.cell is not None})
    if field is None:
        return None
    metrics = dict.fromkeys(metric for _, metric in places(group))
    views = []
    for metric in metrics:
        lines = _lines([s for s in own if s.metric == metric], field, list(group.context.engines))
        if lines:
            views.append(View(metric, [_trace(group, line, field) for line in lines], AXES[field], metric))
    if not views:
        return None
    values = sorted({getattr(s.cell, field) for s in own if getattr(s.cell, field)})
    kind = "log" if values[-1] >= WIDE * values[0] else "linear"
    figure = draw(views, xaxis={"type": kind, "tickvals": values})
    caption = "Mean of launch means with its 95 % interval, cell by cell."
    return Picture("growth", f"Over {AXES[field]}", caption, figure)


def tradeoff(group: GroupResult, summaries: Sequence[Summary]) -> Picture | None:
    """Draw tokens a second against the wait for the first, along rising load; None without two loads."""
    own = [s for s in summaries if s.scenario == group.context.scenario and s.cell is not None]
    waits = {(s.engine, s.cell): s for s in own if s.metric == WAIT}
    speeds = {(s.engine, s.cell): s for s in own if s.metric == SPEED}
    traces = []
    for number, engine in enumerate(group.context.engines):
        cells = sorted((c for e, c in waits.keys() & speeds.keys() if e == engine and c is not None), key=cell_order)
        if len({(cell.concurrency, cell.rate_per_second) for cell in cells}) < 2:
            continue
        traces.append(
            go.Scatter(
                x=[waits[engine, cell].mean for cell in cells],
                y=[speeds[engine, cell].mean for cell in cells],
                mode="lines+markers",
                name=plain(engine),
                line={**line_of(number), "width": 2},
                marker={"size": 8},
                text=[plain(short_name(cell)) for cell in cells],
                hovertemplate="%{text}: first token after %{x:.4g} s, %{y:.4g} tokens/s<extra>"
                + plain(engine)
                + "</extra>",
            )
        )
    if not traces:
        return None
    view = View("", traces, f"{WAIT} (mean)", f"{SPEED} (mean)")
    caption = "One point is one load. Up is more for the machine, left is less waiting for its users."
    return Picture("tradeoff", "What throughput costs in waiting", caption, draw([view]))


def _axis(cells: set[Cell]) -> str | None:
    """Return the field with the most values among cells that are alike otherwise."""
    best, most = None, 1
    for field in AXES:
        found: dict[Cell, set[float]] = {}
        for cell in cells:
            if getattr(cell, field):
                found.setdefault(_without(cell, field), set()).add(getattr(cell, field))
        count = max(map(len, found.values()), default=0)
        if count > most:
            best, most = field, count
    return best


def _without(cell: Cell, field: str) -> Cell:
    empty: dict[str, float | None] = {field: None if field == "rate_per_second" else 0}
    return msgspec.structs.replace(cell, **empty)


def _lines(summaries: Sequence[Summary], field: str, engines: list[str]) -> list[Line]:
    found: dict[tuple[str, Cell], list[Summary]] = {}
    for s in summaries:
        if s.cell is not None and getattr(s.cell, field):
            found.setdefault((s.engine, _without(s.cell, field)), []).append(s)
    long = {key: rows for key, rows in found.items() if len(rows) > 1}
    several = len({rest for _, rest in long}) > 1
    order = sorted(long, key=lambda key: (engines.index(key[0]), cell_order(key[1])))
    return [
        (
            f"{engine}, {_fixed(rest, field)}" if several else engine,
            sorted(long[engine, rest], key=lambda s: getattr(s.cell, field)),
        )
        for engine, rest in order
    ]


def _fixed(rest: Cell, field: str) -> str:
    """Return what a line holds fixed."""
    parts = [rest.variant or "", rest.arrival or ""]
    parts += [f"{getattr(rest, name)} {AXES[name]}" for name in AXES if name != field and getattr(rest, name)]
    return ", ".join(part for part in parts if part)


def _trace(group: GroupResult, line: Line, field: str) -> go.Scatter:
    name, rows = line
    engine = rows[0].engine
    known = [row if math.isfinite(row.ci_low) else None for row in rows]
    return go.Scatter(
        x=[getattr(row.cell, field) for row in rows],
        y=[row.mean for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [row.ci_high - row.mean if row else 0 for row in known],
            "arrayminus": [row.mean - row.ci_low if row else 0 for row in known],
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        name=plain(name),
        line={**line_of(list(group.context.engines).index(engine)), "width": 2},
        marker={"size": 8},
        text=[plain(short_name(row.cell)) for row in rows],
        hovertemplate="%{text}: %{y:.4g}<extra>" + plain(engine) + "</extra>",
    )
