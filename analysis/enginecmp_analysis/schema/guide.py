"""What `cmp guide --json` prints: schema "enginecmp-guide/1". The Markdown and the HTML show the same sections."""

from __future__ import annotations

import msgspec

GUIDE_SCHEMA = "enginecmp-guide/1"


class Table(msgspec.Struct, kw_only=True):
    """A table of a section; every cell is text.

    Attributes:
        heads: titles of the columns.
        rows: one cell a title.
    """

    heads: list[str]
    rows: list[list[str]]


class Section(msgspec.Struct, kw_only=True):
    """One question of the guide.

    Attributes:
        name: for machines: "uses", "service", "targets", "gaps", "risks", "roadmap", "basis".
        title: the question.
        text: sentences, each a paragraph.
        table: the numbers behind them; null where there are none.
        notes: further sentences, each by itself.
        commands: what closes what is open, ready to be pasted into a shell.
    """

    name: str
    title: str
    text: list[str] = []
    table: Table | None = None
    notes: list[str] = []
    commands: list[str] = []


class Guide(msgspec.Struct, kw_only=True):
    """Everything that `cmp guide` found.

    Attributes:
        schema: "enginecmp-guide/1".
        title: model and machine that it is about.
        sections: in the order in which they are read.
    """

    schema: str = GUIDE_SCHEMA
    title: str
    sections: list[Section]
