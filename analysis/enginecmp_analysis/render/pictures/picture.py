"""What all pictures share: views, names of what is measured, and engines told apart without colour."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go

from enginecmp.format.records import Cell
from enginecmp.format.text import visible
from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.render.layout import unit_for
from enginecmp_analysis.render.ranking_rows import heading

COLOURS = ("#2f7ec2", "#d9780f", "#9a5fd0", "#18a3b8", "#d4589f", "#94693a", "#7d8590")
"""Of engines, in the order of the run, and of nothing else; they stand out from white and from black. Green and red are
those of verdicts, which page.css has."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon")
"""Of engines, so that nothing rests on colours alone."""

DASHES = ("solid", "dash", "dot", "dashdot")
"""Of lines of engines, likewise; colours and dashes together repeat after 28 engines."""

QUIET = "#87909a"
"""Of what belongs to no engine: intervals, limits, sensors."""

HEIGHT = 380

_UNITS = "tokens_per_second|requests_per_second|bytes_per_second|seconds|bytes"
_METRIC = re.compile(rf"(?P<name>.+?)(_({_UNITS}))?(?P<quantile>_p\d+)?")

_WORDS = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "end-to-end time", "rss": "RSS", "kv": "KV"}

Where = tuple[Cell | None, str]
"""Cell and metric."""


class View(NamedTuple):
    """One entry of a picture's menu.

    Attributes:
        label: in the menu.
        title: what it shows, as a heading.
        traces: what is drawn.
        x: title of the axis.
        y: likewise.
        height: of the picture, pixels.
        layout: more of plotly's layout.
    """

    label: str
    title: str
    traces: Sequence[go.Scatter]
    x: str
    y: str
    height: int = HEIGHT
    layout: Mapping[str, Any] = {}

    def figure(self) -> go.Figure:
        """Return it as a figure; colours of the page itself are added where it is drawn."""
        axes = {"xaxis": {"title": {"text": self.x}}, "yaxis": {"title": {"text": self.y}}}
        layout = {**self.layout, **{name: {**axis, **self.layout.get(name, {})} for name, axis in axes.items()}}
        figure = go.Figure(list(self.traces), {"template": "none", "height": self.height, **layout})
        figure.update_xaxes(automargin=True)
        figure.update_yaxes(automargin=True)
        return figure


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture with what a reader must know to read it.

    Attributes:
        name: of the picture inside its scenario; letters and hyphens only.
        question: which one it answers.
        caption: how it is read.
        views: at least one; the page shows the first until another one is chosen.
    """

    name: str
    question: str
    caption: str
    views: list[View] = field(default_factory=list)


def plain(text: str) -> str:
    """Return a text for a picture, where tags would be taken as tags."""
    return escape(visible(text), quote=False)


def line_of(number: int) -> dict[str, str]:
    """Return colour and dash of the engine with that number."""
    return {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number // len(COLOURS) % len(DASHES)]}


def marker_of(number: int) -> dict[str, Any]:
    """Return colour and shape of the engine with that number."""
    return {"color": COLOURS[number % len(COLOURS)], "symbol": SYMBOLS[number % len(SYMBOLS)], "size": 8}


def metric_title(metric: str) -> str:
    """Return a metric in words, without its unit: "throughput", "TTFT p90"."""
    found = _METRIC.fullmatch(metric)
    words = metric if found is None else found["name"] + (found["quantile"] or "")
    return " ".join(_WORDS.get(word, word) for word in words.split("_"))


def scale_for(metric: str, largest: float) -> tuple[float, str]:
    """Return by what values are divided to be readable, and the title of their axis: "TTFT, ms"."""
    scale, unit = unit_for(metric, largest)
    unit = heading(metric, unit)
    return scale, f"{metric_title(metric)}, {unit}" if unit != "value" else metric_title(metric)


def places(group: GroupResult, wanted: Callable[[str], bool] = lambda metric: True) -> list[Where]:
    """Return where there is something to draw: the primary metric in every cell, then all others.

    Args:
        group: what was analysed.
        wanted: says whether a metric fits the picture; all do without it.
    """
    primary = group.context.primary_metric
    found = dict.fromkeys((cell, metric) for _, cell, metric in group.means if wanted(metric))
    order = list(METRICS)
    cells = list(dict.fromkeys(cell for cell, _ in found))
    return sorted(found, key=lambda at: (at[1] != primary, order.index(at[1]), cells.index(at[0])))


def place_name(cell: Cell | None, metric: str) -> str:
    """Return how menus and titles call a metric in a cell."""
    return f"{metric_title(metric)}, {short_name(cell)}" if cell is not None else metric_title(metric)
