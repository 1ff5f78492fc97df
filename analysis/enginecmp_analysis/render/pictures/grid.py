"""Over the cells of a scenario: how a number grows with lengths, users or rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import plotly.graph_objects as go

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import arrivals_name, cell_order, is_open, kinds_of, short_name
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.render.pictures.picture import (
    Picture,
    View,
    line_of,
    marker_of,
    metric_title,
    places,
    plain,
    scale_for,
)
from enginecmp_analysis.schema.stats import Summary

AXES = {
    "concurrency": "users",
    "rate_per_second": "requests sent a second",
    "prompt_tokens": "prompt tokens",
    "output_tokens": "output tokens",
}
"""Fields of a cell that can be an axis, and its title."""

WIDE = 8
"""An axis is logarithmic from so many times its smallest value on."""

Line = tuple[str, Cell]
"""Metric, and what is held fixed."""


def growth(group: GroupResult, summaries: Sequence[Summary]) -> list[Picture]:
    """Draw means over every field that varies among cells which are alike otherwise.

    Args:
        group: what was analysed.
        summaries: of the whole report.
    """
    own = [s for s in summaries if s.scenario == group.context.scenario and s.cell is not None]
    pictures = []
    for field, title in AXES.items():
        views = list(_views(group, own, field))
        if views:
            caption = (
                f"Mean of launch means with its 95 % interval over {title}; everything else is the same on a line."
            )
            name = f"growth-{field.replace('_', '-')}"
            pictures.append(Picture(name, "How does it grow with load and length?", caption, views))
    return pictures


def rest_of(cell: Cell, field: str) -> Cell:
    """Return a cell without one of its numbers: what is held fixed along that axis."""
    empty: dict[str, float | msgspec.UnsetType] = {field: msgspec.UNSET if field == "rate_per_second" else 0}
    return msgspec.structs.replace(cell, **empty)


def fixed(rest: Cell, field: str) -> str:
    """Return what a line along an axis holds fixed."""
    loop = arrivals_name(rest) if is_open(rest) else "closed loop" if field == "concurrency" else ""
    parts = [*kinds_of(rest), loop]
    for name, title in AXES.items():
        value = getattr(rest, name)
        if name != field and value and not (is_open(rest) and name in ("concurrency", "rate_per_second")):
            parts.append(f"{value} {title.removesuffix('s') if value == 1 else title}")
    return ", ".join(part for part in parts if part)


def can_vary(cell: Cell, field: str) -> bool:
    """Return whether a field of a cell is a load or a length: in an open loop `concurrency` is only a limit."""
    return bool(getattr(cell, field)) and not (field == "concurrency" and is_open(cell))


def _views(group: GroupResult, summaries: Sequence[Summary], field: str) -> Iterator[View]:
    lines: dict[Line, list[Summary]] = {}
    for s in summaries:
        if s.cell is not None and can_vary(s.cell, field):
            lines.setdefault((s.metric, rest_of(s.cell, field)), []).append(s)
    metrics = list(dict.fromkeys(metric for _, metric in places(group)))
    drawn = {line: rows for line, rows in lines.items() if line[0] in metrics and len({r.cell for r in rows}) > 1}
    for metric, rest in sorted(drawn, key=lambda line: (metrics.index(line[0]), cell_order(line[1]))):
        rows = drawn[metric, rest]
        scale, axis = scale_for(metric, max(abs(row.mean) for row in rows))
        traces = []
        for number, engine in enumerate(group.context.engines):
            of_engine = sorted((r for r in rows if r.engine == engine), key=lambda row: getattr(row.cell, field))
            if of_engine:
                traces.append(_trace(number, of_engine, field, scale))
        values = sorted({getattr(row.cell, field) for row in rows})
        kind = "log" if values[-1] >= WIDE * values[0] else "linear"
        name, held = metric_title(metric), fixed(rest, field)
        yield View(
            f"{name}, {held}" if held else name,
            f"{name} over {AXES[field]}{f' ({held})' if held else ''}",
            traces,
            AXES[field],
            axis,
            layout={"xaxis": {"type": kind, "tickvals": values}},
        )


def _trace(number: int, rows: Sequence[Summary], field: str, scale: float) -> go.Scatter:
    known = [row if math.isfinite(row.ci_low) else None for row in rows]
    name = plain(rows[0].engine)
    return go.Scatter(
        x=[getattr(row.cell, field) for row in rows],
        y=[row.mean / scale for row in rows],
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [(row.ci_high - row.mean) / scale if row else 0 for row in known],
            "arrayminus": [(row.mean - row.ci_low) / scale if row else 0 for row in known],
            "thickness": 1.5,
            "width": 4,
        },
        mode="lines+markers",
        name=name,
        line={**line_of(number), "width": 2},
        marker=marker_of(number),
        text=[plain(short_name(row.cell)) for row in rows],
        hovertemplate="%{text}: %{y:.4g}<extra>" + name + "</extra>",
    )
