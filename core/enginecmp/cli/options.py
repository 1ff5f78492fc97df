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


def read_duration(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read seconds written as "90", "90s", "5min" or "1.5h"."""
    units = {"s": 1.0, "min": 60.0, "h": 3600.0}
    text = value.strip()
    unit = next((unit for unit in ("min", "s", "h") if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * units.get(unit, 1.0)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        msg = f"expected a time like 90s, 5min or 1h, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    return seconds
