"""A command whose options are listed by what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class GroupedCommand(click.Command):
    """A command whose help lists its options under titles.

    Args:
        groups: title → names of parameters, in the order in which they are listed; those that none of them names come
            last, under "Options".
    """

    def __init__(self, *arguments: Any, groups: Mapping[str, Sequence[str]], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._groups = groups

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        grouped = {name for names in self._groups.values() for name in names}
        rest = [name for name in records if name not in grouped]
        for title, names in (*self._groups.items(), ("Options", rest)):
            rows = [record for name in names if (record := records.get(name)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
