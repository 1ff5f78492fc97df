"""Every verdict as a point with its interval: right of 1 the engine's number is the larger one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.data.metrics import METRICS, metric_of
from enginecmp_analysis.render.layout import show_limits, show_times, three_digits
from enginecmp_analysis.render.pictures.picture import QUIET, Picture, View, marker_of, metric_title, plain
from enginecmp_analysis.render.table import verdict_words
from enginecmp_analysis.schema.stats import Comparison

DECIDED = ("faster", "slower", "equivalent")
"""Verdicts that fill a point."""

ROW_HEIGHT = 44
MOST_TICKS = 5
MOST_POWER = 12
"""No axis goes beyond that power of ten."""

MOST_ROWS = 14
"""Of a view: as many as a sheet of paper holds."""


def ratios(context: Context, comparisons: Sequence[Comparison], margin: float) -> Picture | None:
    """Draw the comparisons of one scenario; None where nothing was compared.

    Args:
        context: its frame.
        comparisons: of the whole report.
        margin: relative equivalence margin.
    """
    own = [c for c in comparisons if c.scenario == context.scenario and math.isfinite(c.ratio)]
    if not own:
        return None
    order = list(METRICS)
    metrics = sorted(
        dict.fromkeys(c.metric for c in own),
        key=lambda name: (name != context.primary_metric, order.index(metric_of(name).name), name),
    )
    return Picture(
        "ratios",
        "Who is ahead, by how much, how sure?",
        "A point is the ratio of the engine's number to the baseline's, its line the 95 % interval over launches, the "
        f"shaded band the margin of ±{100 * margin:g} % in which a difference does not matter. Filled: there is a "
        "verdict. Hollow: there is none yet, or it is withheld. Point at one for its words and what is missing.",
        [view for metric in metrics for view in _views([c for c in own if c.metric == metric], context, margin)],
    )


def _views(rows: list[Comparison], context: Context, margin: float) -> list[View]:
    """Return the comparisons on one metric, in parts that can be read."""
    parts = [rows[first : first + MOST_ROWS] for first in range(0, len(rows), MOST_ROWS)]
    numbered = [f" ({number} of {len(parts)})" if len(parts) > 1 else "" for number in range(1, len(parts) + 1)]
    return [_view(part, at, list(context.engines), margin) for part, at in zip(parts, numbered, strict=True)]


def _view(rows: list[Comparison], part: str, engines: list[str], margin: float) -> View:
    metric = rows[0].metric
    cells = len({c.cell for c in rows}) > 1
    baselines = list(dict.fromkeys(c.baseline for c in rows))
    marks = [marker_of(engines.index(c.engine)) for c in rows]
    trace = go.Scatter(
        x=[c.ratio for c in rows],
        y=[_row(c, cells=cells, pairs=len(baselines) > 1) for c in rows],
        mode="markers+text",
        marker={
            "color": [mark["color"] for mark in marks],
            "symbol": [
                mark["symbol"] if c.verdict in DECIDED else f"{mark['symbol']}-open"
                for c, mark in zip(rows, marks, strict=True)
            ],
            "size": 11,
            "line": {"width": 2, "color": [mark["color"] for mark in marks]},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [c.ci_high - c.ratio if math.isfinite(c.ci_high) else 0 for c in rows],
            "arrayminus": [c.ratio - c.ci_low if math.isfinite(c.ci_low) else 0 for c in rows],
            "color": QUIET,
            "thickness": 1.5,
            "width": 5,
        },
        text=[f"{three_digits(c.ratio)}×" for c in rows],
        textposition="top center",
        cliponaxis=False,
        hovertext=[_hover(c) for c in rows],
        hoverinfo="text",
        name=metric,
    )
    better = "higher is better" if metric_of(metric).higher_is_better else "lower is better"
    against = baselines[0] if len(baselines) == 1 else "every other engine"
    low, high = 1 / (1 + margin), 1 + margin
    limits = (end for c in rows for end in (c.ratio, c.ci_low, c.ci_high))
    values = [math.log10(value) for value in (low, high, *limits) if math.isfinite(value) and value > 0]
    # Room at both ends for the numbers above the points.
    room = 0.12 * (max(values) - min(values))
    ends = [max(-MOST_POWER, min(values) - room), min(MOST_POWER, max(values) + room)]
    return View(
        f"{metric_title(metric)}{part}",
        f"{metric_title(metric)} of each engine relative to {against} ({better}){part}",
        [trace],
        "ratio; 1 is the same",
        "",
        120 + ROW_HEIGHT * len(rows),
        {
            "showlegend": False,
            # The first row on top, and room above it for its number.
            "yaxis": {"range": [len(rows) - 0.5, -0.8], "ticksuffix": "  "},
            "xaxis": {"type": "log", "range": ends, "tickvals": _ticks(*(10**end for end in ends))},
            "shapes": [
                {"type": "line", "yref": "paper", "x0": 1, "x1": 1, "y0": 0, "y1": 1, "line": {"color": QUIET}},
                {
                    "type": "rect",
                    "yref": "paper",
                    "x0": low,
                    "x1": high,
                    "y0": 0,
                    "y1": 1,
                    "fillcolor": QUIET,
                    "opacity": 0.2,
                    "line": {"width": 0},
                },
            ],
        },
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return where the axis is labelled between two ratios: at 1, and at round numbers that leave room for labels."""
    # Equal steps crowd on the right of a logarithmic axis that spans much.
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if high < 3 * low else ():
        first, last = math.ceil(low / step), math.floor(high / step)
        if first * step <= 1 <= last * step and last - first < MOST_TICKS:
            return [round(n * step, 2) for n in range(first, last + 1)]
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            d * 10.0**power
            for power in range(-MOST_POWER, MOST_POWER + 1)
            for d in digits
            if low <= d * 10.0**power <= high
        ]
        if len(ticks) <= MOST_TICKS:
            return ticks
    return [10.0**power for power in (-MOST_POWER, 0, MOST_POWER) if low <= 10.0**power <= high]


def _row(c: Comparison, *, cells: bool, pairs: bool) -> str:
    names = f"{c.engine} / {c.baseline}" if pairs else c.engine
    return plain(names) + (f"<br>{plain(short_name(c.cell))}" if cells else "")


def _hover(c: Comparison) -> str:
    ratio = f"{show_times(c.ratio)}{show_limits(c.ci_low, c.ci_high)}"
    lines = [f"{c.engine} / {c.baseline}: {ratio}", verdict_words(c), *c.warnings]
    return "<br>".join(map(plain, lines))
