"""What reaches a terminal: one clean line at a time, tables, and JSON. Nothing is printed anywhere else.

Words of models, engines, servers and files are shown and never obeyed: what a terminal would act on is written out,
and a line break inside a line cannot begin another one.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from enginecmp.format.text import to_json, visible

if TYPE_CHECKING:
    from enginecmp_analysis.render.layout import Line


def say(line: str) -> None:
    """Print one line on stderr; called only while no engine is being measured."""
    print(visible(line), file=sys.stderr, flush=True)


def echo(line: str = "") -> None:
    """Print one line on stdout."""
    print(visible(line))


def echo_text(text: str) -> None:
    """Print a laid-out text on stdout, line by line."""
    for line in text.removesuffix("\n").split("\n"):
        print(visible(line, limit=len(line)))


def show(lines: Sequence[Line]) -> None:
    """Print lines of text with their styles; NO_COLOR and pipes get text alone."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        for text, _ in lines:
            echo(text)
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for text, style in lines:
        console.print(Text(visible(text), style=style))


def print_json(content: Any) -> None:
    """Print a document as JSON, on several lines."""
    # Escapes inside strings are the only place for such characters, so the meaning stays.
    text = re.sub(r"[^\n -~]", _escape, to_json(content, indent=2).decode())
    print(text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    return character if character.isprintable() else f"\\u{ord(character):04x}"


def columns(rows: Sequence[Sequence[str]]) -> None:
    """Print rows as left-aligned columns, the first row as their headings; nothing is cut."""
    clean = [[visible(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in clean) for column in range(len(clean[0]))]
    for row in clean:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def table(headings: Sequence[str], rows: Sequence[Sequence[str | tuple[str, str]]], right: Sequence[str] = ()) -> None:
    """Print a table that fits the terminal's width.

    Args:
        headings: of the columns.
        rows: one cell a column: text, or text and style.
        right: headings of columns that are aligned to the right; they are never wrapped.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, justify="right" if heading in right else "left", no_wrap=bool(right))
    for row in rows:
        cells = [(cell, "") if isinstance(cell, str) else cell for cell in row]
        drawn.add_row(*(Text(visible(text), style=style) for text, style in cells))
    Console(highlight=False).print(drawn)
