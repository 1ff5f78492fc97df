"""The regularized incomplete beta function, in plain Python.

`scipy.special` has it, but importing that package takes longer than everything else in `cmp stats` together, and
the command has one second. A test holds this one to scipy's, to ten digits.
"""

from __future__ import annotations

import math

_TINY = 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return I_x(a, b); NaN where an argument is NaN.

    Continued fraction 8.17.22 of the NIST Digital Library of Mathematical Functions, evaluated by Lentz's method on
    the side where it converges fast.

    Args:
        a: > 0.
        b: > 0.
        x: in [0, 1].
    """
    if math.isnan(a) or math.isnan(b) or math.isnan(x):
        return math.nan
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    if x > (a + 1) / (a + b + 2):
        return 1 - front / (b * _fraction(b, a, 1 - x))
    return front / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    c = 1.0
    d = 1 / ((1 - (a + b) * x / (a + 1)) or _TINY)
    f = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + even * d) or _TINY)
        c = (1 + even / c) or _TINY
        f *= d * c
        d = 1 / ((1 + odd * d) or _TINY)
        c = (1 + odd / c) or _TINY
        f *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return 1 / f
