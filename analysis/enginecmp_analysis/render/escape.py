"""Foreign words in what the analysis writes: labels, models, errors and notes are shown, and never obeyed.

A label may begin a formula in a spreadsheet, end a row of a Markdown table, be a link or a tag, or hold what a
terminal acts on. Each form of output has its own way to say the same characters harmlessly.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from enginecmp.format.text import visible

_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_MARKDOWN = re.compile(r"[\\|\[\]`<>&]|://|www\.", re.IGNORECASE)
_HIDDEN = re.compile(r"[^\n -~]")


def for_csv(value: object) -> object:
    """Return a cell of a CSV file: text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def for_markdown(text: str) -> str:
    """Return text for one line or cell of Markdown: no column, link, image, tag or code begins in it."""
    return _MARKDOWN.sub(_marked, visible(text))


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table: titles as they are, foreign words in the cells shown and never obeyed."""
    return [
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
        *(f"| {' | '.join(map(for_markdown, row))} |" for row in rows),
    ]


def _marked(found: re.Match[str]) -> str:
    text = found[0]
    if text in "<>&":
        return html.escape(text)
    # A bare address becomes a link by itself, unless it is broken by an escape that is not shown.
    return {"://": ":\\//"}.get(text, f"{text[:3]}\\." if len(text) == 4 else f"\\{text}")


def for_html(text: str) -> str:
    """Return text for a page or a picture."""
    return html.escape(visible(text))


def for_json(text: str) -> str:
    """Return a JSON document in which characters that a terminal acts on are written as escapes."""
    # Inside of strings is the only place where they can stand, so the meaning stays.
    return _HIDDEN.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
