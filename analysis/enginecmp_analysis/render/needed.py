"""What a verdict lacks, in words: launches or runs where a sensible number of them would do, else that none will."""

from __future__ import annotations

import math

import msgspec

from enginecmp_analysis.render.layout import show_count, three_digits
from enginecmp_analysis.schema.regression import RegressionLine
from enginecmp_analysis.schema.stats import Comparison

MOST_MORE = 100
"""More launches (or runs) than that nobody makes: the machine is too unsteady for so small a difference."""


def missing(c: Comparison | RegressionLine) -> tuple[int | None, str, str]:
    """Return how many are missing, null where that is not known, of what, and the ending of several of them."""
    if isinstance(c.runs_needed, msgspec.UnsetType):
        return c.launches_needed, "launch", "es"
    return c.runs_needed, "run", "s"


def is_hopeless(c: Comparison) -> bool:
    """Return whether an open comparison takes more launches than anybody makes."""
    n = missing(c)[0]
    # Without a number there was no spread to plan with, or there is no end to the plan.
    return c.verdict == "inconclusive" and (math.isfinite(c.mde) if n is None else n > MOST_MORE)


def hopeless_words(what: str, low: float, high: float) -> str:
    """Return what is said instead of a number that nobody makes.

    Args:
        what: "launches" or "runs".
        low: lower limit of the ratio.
        high: upper limit.
    """
    bound = f"; the difference, if any, is below {most_apart(low, high)}" if math.isfinite(low + high) else ""
    return f"no realistic number of {what} tells them apart on this machine{bound}"


def most_apart(low: float, high: float) -> str:
    """Return the largest difference from 1 inside the limits of a ratio, in per cent."""
    return f"{three_digits(100 * max(abs(high - 1), abs(1 - low)))} %"


def more_needed(c: Comparison) -> str:
    """Return how many launches, or runs where several are pooled, are missing for a verdict."""
    n, word, plural = missing(c)
    if is_hopeless(c):
        return hopeless_words(f"{word}{plural}", c.ci_low, c.ci_high)
    return "no spread to plan with" if n is None else f"{show_count(n, f'more {word}', plural)} needed"
