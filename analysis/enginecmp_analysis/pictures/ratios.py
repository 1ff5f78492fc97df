"""Every verdict as a point with its interval: right of 1 the engine's number is the larger one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from enginecmp_analysis.context import Context
from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.metrics import METRICS, metric_of
from enginecmp_analysis.output.layout import show_limits, show_times
from enginecmp_analysis.output.table import verdict_words
from enginecmp_analysis.pictures.picture import INK, QUIET, Picture, View, draw, plain
from enginecmp_analysis.schema import Comparison

MARKS = {
    "faster": ("#009e73", "circle"),
    "slower": ("#d55e00", "circle"),
    "equivalent": ("#0072b2", "diamond"),
    "inconclusive": (QUIET, "circle-open"),
    "withheld": (QUIET, "circle-open"),
}
"""Colour and symbol of each verdict: filled when there is one."""

ROW_HEIGHT = 44


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
    views = [_view(metric, [c for c in own if c.metric == metric]) for metric in metrics]
    figure = draw(
        views,
        showlegend=False,
        xaxis={"type": "log"},
        yaxis={"ticksuffix": "  "},
    )
    figure.add_vline(x=1, line={"color": INK, "width": 1})
    figure.add_vrect(x0=1 / (1 + margin), x1=1 + margin, fillcolor="#0072b2", opacity=0.08, line_width=0)
    return Picture(
        "ratios",
        "How much faster, and how sure",
        "A point is the ratio of the engine's number to the baseline's, its line the 95 % interval over launches, the "
        f"shaded band the margin of ±{100 * margin:g} % in which a difference does not matter. Filled: there is a "
        "verdict. Hollow: there is none yet, or it is withheld; point at it to see what is missing.",
        figure,
    )


def _view(metric: str, rows: list[Comparison]) -> View:
    several = len({c.cell for c in rows}) > 1
    marks = [MARKS.get(c.verdict, MARKS["withheld"]) for c in rows]
    trace = go.Scatter(
        x=[c.ratio for c in rows],
        y=[_row(c, several) for c in rows],
        mode="markers+text",
        marker={"color": [mark[0] for mark in marks], "symbol": [mark[1] for mark in marks], "size": 11},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [c.ci_high - c.ratio if math.isfinite(c.ci_high) else 0 for c in rows],
            "arrayminus": [c.ratio - c.ci_low if math.isfinite(c.ci_low) else 0 for c in rows],
            "color": QUIET,
            "thickness": 1.5,
            "width": 5,
        },
        text=[show_times(c.ratio) for c in rows],
        textposition="top center",
        hovertext=[_hover(c) for c in rows],
        hoverinfo="text",
        name=metric,
    )
    better = "higher is better" if metric_of(metric).higher_is_better else "lower is better"
    baselines = ", ".join(dict.fromkeys(c.baseline for c in rows))
    return View(
        metric,
        [trace],
        f"{metric}, ratio to {plain(baselines)} ({better})",
        "",
        130 + ROW_HEIGHT * len(rows),
        # The first row on top, and room above it for its number.
        {"yaxis.range": [len(rows) - 0.5, -0.8], "xaxis.tickvals": _ticks(rows)},
    )


def _ticks(rows: list[Comparison]) -> list[float]:
    """Return where the axis is labelled: the closer together the ratios, the finer."""
    ends = [1.0, *(end for c in rows for end in (c.ratio, c.ci_low, c.ci_high) if math.isfinite(end) and end > 0)]
    span = max(ends) / min(ends)
    if span < 1.25:
        return [n / 100 for n in range(70, 151, 2 if span < 1.1 else 5)]
    if span < 4:
        return [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.75, 2, 2.5, 3, 4, 5]
    return [digit * 10.0**power for power in range(-9, 10) for digit in (1, 2, 5)]


def _row(c: Comparison, several: bool) -> str:
    return plain(f"{c.engine}  {short_name(c.cell)}" if several else c.engine)


def _hover(c: Comparison) -> str:
    ratio = f"{show_times(c.ratio)}{show_limits(c.ci_low, c.ci_high)}"
    lines = [f"{c.engine} / {c.baseline}: {ratio}", verdict_words(c), *c.warnings]
    return "<br>".join(map(plain, lines))
