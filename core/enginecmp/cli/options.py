"""How option values are written that several verbs take."""

from __future__ import annotations

import click


def read_share(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read a share written as "3%" or "0.03"."""
    try:
        share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        msg = f"expected a share like 3% or 0.03, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    return share
