"""Pieces of the page: tables that can be sorted, and text that stands in it without being obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from enginecmp_analysis.render.escape import for_html, for_json
from enginecmp_analysis.render.pictures.picture import COLOURS, SYMBOLS

MARKS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "cross": "✚",
    "star": "★",
    "hexagon": "⬢",
}
"""How text shows the symbols of engines."""


Cell = str | tuple[str, float]
"""HTML, and what it is sorted by where its text would not do."""


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], kind: str = "") -> Iterator[str]:
    """Yield a table that a click on a heading sorts.

    Args:
        heads: titles, as text.
        rows: one cell a title, as HTML.
        kind: further classes.
    """
    yield f'<div class="wide"><table class="sortable {kind}"><thead><tr>'
    yield "".join(f'<th scope="col">{for_html(head)}</th>' for head in heads)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(map(_cell, row))}</tr>"
    yield "</tbody></table></div>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{cell}</td>"
    text, value = cell
    return f'<td class="number" data-sort="{value!r}">{text}</td>'


def engine_name(engine: str, engines: Sequence[str]) -> str:
    """Return an engine's label behind the mark that it has in every picture."""
    if engine not in engines:
        return for_html(engine)
    number = engines.index(engine)
    mark = MARKS[SYMBOLS[number % len(SYMBOLS)]]
    colour = COLOURS[number % len(COLOURS)]
    return f'<span class="mark" style="color:{colour}" aria-hidden="true">{mark}</span>{for_html(engine)}'


def in_script(document: str) -> str:
    """Return a JSON document for a script element: nothing in it ends the element or begins a comment."""
    return for_json(document).replace("<", "\\u003c").replace(">", "\\u003e")


def linked(links: Iterable[tuple[str, str]]) -> str:
    """Return links in one line.

    Args:
        links: text and address; an address of ours, made of characters that need no escape.
    """
    return " · ".join(f'<a href="{for_html(address)}">{for_html(text)}</a>' for text, address in links)
