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


def read_extra(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """Read a share of the planned time written as "50%", "0.5" or "0"; more than all of it is one too."""
    try:
        share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        msg = f"expected a share like 50% or 0.5, or 0 for none, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    return share


def read_blocks(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Read a number of blocks; "+2", which adds to a run, becomes the parameter `more_blocks`."""
    if value is None:
        return None
    digits = value.removeprefix("+")
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 10 else 0
    if number < 1:
        msg = f"expected a number of blocks like 12, or +2 with --extend, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    if value.startswith("+"):
        ctx.params["more_blocks"] = number
        return None
    return number


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
