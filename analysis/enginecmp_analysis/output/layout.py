"""How text and numbers are laid out for a terminal: 80 columns, four digits, limits beside every mean."""

from __future__ import annotations

import math
import textwrap

from enginecmp_analysis.statistics.quantiles import needed_for_quantile

WIDTH = 80

Line = tuple[str, str]
"""Text, and the style that may underline what the text already says ("" for none)."""


def wrap(text: str, indent: str) -> list[str]:
    """Return a text in lines of 80 columns, the first one behind `indent`, the others below it."""
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent), break_on_hyphens=False
    )


def show_count(n: int | None, word: str, plural: str = "s") -> str:
    """Write a number of things."""
    return f"{n} {word}{'' if n == 1 else plural}"


def show_ratio(value: float) -> str:
    """Write a ratio."""
    return f"{value:.3f}" if 0.1 <= value < 100 else f"{value:.3g}"


def show_times(ratio: float) -> str:
    """Write a ratio that stands before what it is of, "1.713×"; "n/a" where there is none."""
    return f"{show_ratio(ratio)}×" if math.isfinite(ratio) else "n/a"


def show_limits(low: float, high: float) -> str:
    """Write the limits of a ratio behind it; nothing where there are none."""
    return f" [{show_ratio(low)}, {show_ratio(high)}]" if math.isfinite(low) else ""


def show_quantile(value: float, q: float, decimals: int | None) -> str:
    """Write a quantile in 9 characters, with its table's decimals where they fit, or how many values it takes."""
    if not math.isfinite(value):
        return f"need {needed_for_quantile(q)}"
    text = f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"
    return text if len(text) <= 9 else f"{value:.4g}"


def decimals_for(smallest: float) -> int | None:
    """Return the decimals that show four digits of the smallest mean of a table; None when that takes too many."""
    decimals = 3 - math.floor(math.log10(smallest)) if smallest > 0 else 3
    return max(0, decimals) if decimals <= 6 else None


def unit_for(metric: str, largest: float) -> tuple[float, str]:
    """Return by what bytes are divided to be readable, and that unit's name; 1 and "" for everything else."""
    if "bytes" in metric:
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if largest >= size:
                return size, name
    return 1.0, ""


def show_interval(mean: float, low: float, high: float, decimals: int | None) -> str:
    """Write a mean and its limits with the same decimals, so that they can be compared by eye."""
    form = ".3e" if decimals is None else f".{decimals}f"
    limits = f"[{low:{form}}, {high:{form}}]" if math.isfinite(low) else "[one launch]"
    return f"{mean:{form}} {limits}"


def shorten(name: str, width: int) -> str:
    """Cut a name that is wider than its column."""
    return name if len(name) <= width else name[: width - 1] + "…"


def show_percent(value: float) -> str:
    """Write a share as per cent; "n/a" where it is not known."""
    if not math.isfinite(value):
        return "n/a"
    return f"{100 * value:.{0 if value >= 1 else 1}f} %"


def show_p(value: float) -> str:
    """Write the p-value behind a letter "p"."""
    return "<0.001" if value < 0.001 else f"={value:.3f}"
