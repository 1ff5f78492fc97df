"""Service-level objectives: a promise about a tail, kept or not, with the sample size that such a claim takes."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from enginecmp_analysis.beta import incomplete_beta

CONFIDENCE = 0.99
"""Of the early-stopping rule, as MLPerf LoadGen sets it."""


class SloResult(NamedTuple):
    """What the data say about one promise.

    Attributes:
        verdict: pass, fail, or "n/a" with too few requests.
        bound: upper 99 % confidence bound of the quantile; NaN when n/a.
        n: requests.
        needed: requests that it takes to say anything.
    """

    verdict: Literal["pass", "fail", "n/a"]
    bound: float
    n: int
    needed: int


def check(values: ArrayLike, q: float, limit: float) -> SloResult:
    """Return whether the q-quantile stays within a limit, by MLPerf's early-stopping rule.

    With n requests, t is the largest number of slow ones that still proves the quantile with confidence 0.99; the
    t-th highest value is then an upper bound of it. Requests are taken as independent.

    Args:
        values: (n,) latencies.
        q: quantile, e.g. 0.99.
        limit: largest latency promised, in the unit of the values.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    n, needed = len(data), required_requests(q, 1)
    if n < needed:
        return SloResult("n/a", math.nan, n, needed)
    low, high = 1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if required_requests(q, middle) <= n else (low, middle)
    bound = float(data[n - low])
    return SloResult("pass" if bound <= limit else "fail", bound, n, needed)


@functools.lru_cache(maxsize=4096)
def required_requests(q: float, slow: int, confidence: float = CONFIDENCE) -> int:
    """Return the smallest n at which `slow` requests above it still bound the q-quantile.

    MLPerf LoadGen's early stopping without tolerance: the smallest h + t with P(Binomial(h + t, 1 - q) <= t) at most
    1 - confidence, for t = `slow`.
    """

    def unproven(h: int) -> bool:
        # P(Binomial(N, 1 - q) <= t) = I_q(N - t, t + 1)
        return incomplete_beta(h, slow + 1, q) > 1 - confidence

    low, high = 0, 1
    while unproven(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if unproven(middle) else (low, middle)
    return high + slow
