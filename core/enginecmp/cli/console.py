"""Lines on stderr, and tables that the analysis has laid out: plain text, coloured only for a terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from enginecmp_analysis.output.layout import Line


def say(line: str) -> None:
    """Print one line on stderr; called only while no engine is being measured."""
    print(line, file=sys.stderr, flush=True)


def show(lines: list[Line]) -> None:
    """Print lines of text with their styles; NO_COLOR and pipes get text alone."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        click.echo("\n".join(text for text, _ in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for text, style in lines:
        console.print(Text(text, style=style))
