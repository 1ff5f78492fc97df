"""What a measurement could have seen, and how many launches more it would take."""

from __future__ import annotations

import functools
import math

from enginecmp_analysis.judge.compare import NO_SPREAD, LogRatio
from enginecmp_analysis.statistics.student import t_quantile

POWER = 0.8

MOST_LAUNCHES = 100_000


def minimum_detectable_effect(found: LogRatio, alpha: float = 0.05) -> float:
    """Return the relative difference that a repetition would call different with probability 0.8.

    MDE = exp((t[1 - alpha/2] + t[0.8]) * se) - 1; for paired launches se = s_d / sqrt(B). NaN where there is no
    spread to judge by.
    """
    if not bool(found.decidable):
        return math.nan
    return math.expm1(_reach(float(found.df), alpha) * float(found.se))


def launches_needed(found: LogRatio, margin: float, alpha: float = 0.05) -> int | None:
    """Return how many more launches of each engine give a verdict with probability 0.8, if the estimates hold.

    Where several runs are pooled: how many more runs.

    The smallest number at which either the difference found would be told from 1, or it would be shown to lie
    inside the equivalence margin. The spread and the ratio seen so far are taken as true: a plan, not a promise.

    Args:
        found: what was measured.
        margin: relative equivalence margin, e.g. 0.03.
        alpha: level of the tests after correction for their number.

    Returns:
        Launches of each engine (or runs) beyond those measured, at least 1; None when there is no spread to plan with.
    """
    if not bool(found.decidable):
        return None
    # Spread of one (pair of) launches, or of one run: se falls with the root of their number.
    have = found.runs if found.runs > 1 else found.n
    spread = float(found.se) * math.sqrt(have)
    total = launches_for(spread, float(found.estimate), margin, alpha, paired=found.method == "paired")
    return None if total is None else max(1, total - have)


def launches_for(
    spread: float, log_ratio: float, margin: float, alpha: float = 0.05, *, paired: bool = True
) -> int | None:
    """Return the launches of each engine that a verdict takes, at power 0.8.

    Args:
        spread: standard deviation of the log ratio of one pair of launches (unpaired: sqrt(s_a^2 + s_b^2)).
        log_ratio: the true log ratio, supposed.
        margin: relative equivalence margin.
        alpha: level of the tests.
        paired: degrees of freedom are n - 1 when paired, 2n - 2 otherwise.
    """
    if spread <= NO_SPREAD:
        return 2
    difference = abs(log_ratio)
    room = math.log1p(margin) - difference
    low, high = 1, 2
    # The criterion is monotonic in n: double until it holds, then halve.
    while not _conclusive(high, spread, difference, room, alpha, paired):
        low, high = high, high * 2
        if high > MOST_LAUNCHES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if _conclusive(middle, spread, difference, room, alpha, paired):
            high = middle
        else:
            low = middle
    return high


def launches_to_detect(spread: float, effect: float, alpha: float = 0.05) -> int:
    """Return the blocks at which the minimum detectable effect is no more than `effect`.

    Args:
        spread: standard deviation of the log ratio of one block.
        effect: relative difference to find, > 0.
        alpha: level of the test.
    """
    return launches_for(spread, math.log1p(effect), 0.0, alpha) or MOST_LAUNCHES


def _conclusive(n: int, spread: float, difference: float, room: float, alpha: float, paired: bool) -> bool:
    df = n - 1.0 if paired else 2.0 * n - 2
    se = spread / math.sqrt(n)
    # One-sided alpha for equivalence: both one-sided tests must reject.
    return _reach(df, alpha) * se <= difference or _reach(df, 2 * alpha) * se <= room


@functools.lru_cache(maxsize=65536)
def _reach(df: float, alpha: float) -> float:
    """Return how many standard errors away a difference is found with probability `POWER`."""
    return float(t_quantile(1 - alpha / 2, df) + t_quantile(POWER, df))
