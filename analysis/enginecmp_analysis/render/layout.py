"""How text and numbers are laid out for a terminal: 80 columns, three digits, limits beside every mean."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from enginecmp_analysis.statistics.quantiles import needed_for_quantile

WIDTH = 80

MOST_DIGITS = 8
"""Digits behind the point in which a limit of a ratio is told from 1."""

_COMMAND_AT_END = re.compile(r"(?<=:) (cmp [a-z]+ .+)$")

Line = tuple[str, str]
"""Text, and the style that may underline what the text already says ("" for none)."""


def wrap(text: str, indent: str, width: int = WIDTH) -> list[str]:
    """Return a text in lines of 80 columns, the first one behind `indent`, the others below it.

    A command at its end stays whole, on a line of its own where it does not fit: what is printed can be pasted.
    """
    below = " " * len(indent)
    command = _COMMAND_AT_END.search(text)
    if command and len(indent) + len(text) > width:
        return [*wrap(text[: command.start()], indent, width), below + command[1]]
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=below, break_on_hyphens=False)


def show_count(n: int | None, word: str, plural: str = "s") -> str:
    """Write a number of things."""
    return f"{n} {word}{'' if n == 1 else plural}"


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def show_times(ratio: float) -> str:
    """Write a ratio that stands before what it is of, "1.71×"; "n/a" where there is none."""
    return f"{three_digits(ratio)}×" if math.isfinite(ratio) else "n/a"


def show_limits(low: float, high: float) -> str:
    """Write the limits of a ratio behind it; nothing where there are none."""
    return f" [{show_limit(low)}, {show_limit(high)}]" if math.isfinite(low) else ""


def show_limit(limit: float) -> str:
    """Write one limit of a ratio: in three digits, or in as many as tell it from 1, which is what decides."""
    told = three_digits(limit)
    digits = 3
    while told.strip("0") == "1." and limit != 1 and digits < MOST_DIGITS:
        told = f"{limit:.{digits}f}"
        digits += 1
    return told


def show_quantile(value: float, q: float) -> str:
    """Write a quantile, or how many values it takes."""
    return three_digits(value) if math.isfinite(value) else f"need {needed_for_quantile(q)}"


def unit_for(metric: str, largest: float) -> tuple[float, str]:
    """Return by what bytes and seconds are divided to be readable, and that unit's name.

    Args:
        metric: its name, which ends in its unit.
        largest: the largest value of a table, all of whose values take the same unit.

    Returns:
        1 and "" where the metric's own unit is the right one.
    """
    if "bytes" in metric:
        return next(((size, name) for size, name in _BYTES if largest >= size), (1.0, ""))
    if metric.endswith("_seconds") and 0 < largest < 1:
        return next(((size, name) for size, name in _SECONDS if largest >= size), _SECONDS[-1])
    return 1.0, ""


_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_SECONDS = ((1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def three_digits(value: float) -> str:
    """Write a number with three significant digits, as people write it: "47.7", "0.37", "1,230"; "n/a" without one."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, 2 - size)
    if not -4 <= size < 6:
        return f"{value:.2e}"
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def show_interval(low: float, high: float) -> str:
    """Write the limits of a mean behind it."""
    return f"[{three_digits(low)}, {three_digits(high)}]" if math.isfinite(low) else "[one launch]"


def shorten(name: str, width: int) -> str:
    """Cut a name that is wider than its column."""
    return name if len(name) <= width else name[: max(0, width - 1)] + "…"


def show_percent(value: float) -> str:
    """Write a share as per cent; "n/a" where it is not known."""
    if not math.isfinite(value):
        return "n/a"
    return f"{100 * value:.{0 if value >= 1 else 1}f} %"


def show_p(value: float) -> str:
    """Write the p-value behind a letter "p"."""
    return "<0.001" if value < 0.001 else f"={value:.3f}"
