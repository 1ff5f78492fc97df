"""What throughput costs in waiting: one line an engine along rising load, and never across kinds of load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order, is_open, short_name
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.render.pictures.grid import can_vary, fixed, rest_of
from enginecmp_analysis.render.pictures.picture import Picture, View, line_of, marker_of, plain, scale_for
from enginecmp_analysis.schema.stats import Summary

WAIT, SPEED = "ttft_seconds", "throughput_tokens_per_second"

Numbers = Mapping[tuple[str, Cell | None], Summary]


def tradeoff(group: GroupResult, summaries: Sequence[Summary]) -> Picture | None:
    """Draw tokens a second against the wait for the first, along rising load; None without two loads of one kind.

    Loads are of one kind where only the number of users differs, or, in an open loop, only the rate: lengths, the
    arrivals and the variant are the same.
    """
    own = [s for s in summaries if s.scenario == group.context.scenario and s.cell is not None and not s.flagged]
    waits = {(s.engine, s.cell): s for s in own if s.metric == WAIT}
    speeds = {(s.engine, s.cell): s for s in own if s.metric == SPEED}
    kinds: dict[tuple[str, Cell], set[Cell]] = {}
    for _, cell in waits.keys() & speeds.keys():
        if cell is not None:
            field = "rate_per_second" if is_open(cell) else "concurrency"
            if can_vary(cell, field):
                kinds.setdefault((field, rest_of(cell, field)), set()).add(cell)
    views = [
        _view(group, fixed(rest, field), sorted(kinds[field, rest], key=cell_order), waits, speeds)
        for field, rest in sorted(kinds, key=lambda kind: cell_order(kind[1]))
        if len(kinds[field, rest]) > 1
    ]
    if not views:
        return None
    return Picture(
        "tradeoff",
        "How does it grow with load and length?",
        "One point is one load, and a line joins loads of one kind only. Up is more for the machine, left is less "
        "waiting for its users.",
        views,
    )


def _view(group: GroupResult, kind: str, cells: Sequence[Cell], waits: Numbers, speeds: Numbers) -> View:
    keys = [(engine, cell) for engine in group.context.engines for cell in cells]
    keys = [key for key in keys if key in waits and key in speeds]
    wait, x = scale_for(WAIT, max(waits[key].mean for key in keys))
    speed, y = scale_for(SPEED, max(speeds[key].mean for key in keys))
    traces = []
    for number, engine in enumerate(group.context.engines):
        own = [key for key in keys if key[0] == engine]
        if own:
            name = plain(engine)
            traces.append(
                go.Scatter(
                    x=[waits[key].mean / wait for key in own],
                    y=[speeds[key].mean / speed for key in own],
                    mode="lines+markers",
                    name=name,
                    line={**line_of(number), "width": 2},
                    marker=marker_of(number),
                    text=[plain(short_name(cell)) for _, cell in own],
                    hovertemplate="%{text}: first token after %{x:.4g}, %{y:.4g} tokens/s<extra>" + name + "</extra>",
                )
            )
    return View(kind, f"Throughput against waiting for the first token ({kind})", traces, f"{x} (mean)", f"{y} (mean)")
