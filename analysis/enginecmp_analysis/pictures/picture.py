"""What all pictures share: their frame, colours that everybody can tell apart, and the menu above one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

import plotly.graph_objects as go

from enginecmp.types import Cell
from enginecmp_analysis.context import GroupResult
from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.metrics import METRICS

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
"""Of engines, in the order of the run: the palette of Okabe and Ito without its yellow, which white swallows."""

DASHES = ("solid", "dash", "dot")
"""Of lines, once all colours are taken."""

INK = "#1d2733"
QUIET = "#8793a0"
HEIGHT = 380
FRAME = {
    "template": "plotly_white",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "hoverlabel": {"align": "left"},
}
"""Of the layout of every picture."""

Where = tuple[Cell | None, str]
"""Cell and metric."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure with what a reader must know to read it.

    Attributes:
        name: of the picture inside its scenario; letters only.
        title: what it shows.
        caption: how it is read.
        figure: itself.
    """

    name: str
    title: str
    caption: str
    figure: go.Figure


class View(NamedTuple):
    """One entry of a picture's menu.

    Attributes:
        label: in the menu.
        traces: what it shows.
        x: title of the axis.
        y: likewise.
        height: of the picture, pixels.
        more: of its layout, by dotted names.
    """

    label: str
    traces: Sequence[go.Scatter]
    x: str
    y: str
    height: int = HEIGHT
    more: Mapping[str, object] = {}

    def layout(self) -> dict[str, object]:
        """Return what of the layout is this view's, by dotted names."""
        return {"xaxis.title.text": self.x, "yaxis.title.text": self.y, "height": self.height, **self.more}


def plain(text: str) -> str:
    """Return a text for a picture, where tags would be taken as tags."""
    return escape(text, quote=False)


def line_of(number: int) -> dict[str, str]:
    """Return colour and dash of the engine with that number."""
    return {"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number // len(COLOURS) % len(DASHES)]}


def draw(views: Sequence[View], **layout: object) -> go.Figure:
    """Return a figure that shows the first view, with a menu where there are several."""
    figure = go.Figure()
    for number, view in enumerate(views):
        for trace in view.traces:
            figure.add_trace(trace.update(visible=number == 0))
    figure.update_layout(
        **FRAME,
        margin={"l": 10, "r": 20, "t": 50 if len(views) > 1 else 36, "b": 10},
        legend={"orientation": "v", "x": 1.01, "y": 1},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    figure.update_layout(**layout)
    for name, value in views[0].layout().items():
        figure.layout[name] = value
    if len(views) > 1:
        figure.update_layout(updatemenus=[_menu(views)])
    return figure


def _menu(views: Sequence[View]) -> dict[str, object]:
    owners = [number for number, view in enumerate(views) for _ in view.traces]
    buttons = [
        {
            "label": view.label,
            "method": "update",
            "args": [
                {"visible": [owner == number for owner in owners]},
                view.layout(),
            ],
        }
        for number, view in enumerate(views)
    ]
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "showactive": True}


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


def labels(where: Iterable[Where]) -> dict[Where, str]:
    """Return how a menu calls each place: by its metric, and by its cell where there are several."""
    where = list(where)
    several = len({cell for cell, _ in where if cell is not None}) > 1
    return {at: plain(f"{at[1]}, {short_name(at[0])}") if several else at[1] for at in where}
