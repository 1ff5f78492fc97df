"""Service-level objectives: a promise about a tail, kept or not, with the sample size that such a claim takes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from enginecmp.errors import UsageError
from enginecmp_analysis.beta import incomplete_beta
from enginecmp_analysis.launches import Key, LaunchMeans
from enginecmp_analysis.metrics import find_metric
from enginecmp_analysis.schema import SloLine

CONFIDENCE = 0.99
"""Of the early-stopping rule, as MLPerf LoadGen sets it."""


class Promise(NamedTuple):
    """A limit for a quantile of a latency.

    Attributes:
        metric: name of a latency.
        quantile: e.g. 0.99.
        limit: largest value promised, in the metric's unit.
    """

    metric: str
    quantile: float
    limit: float


def parse_promise(text: str) -> Promise:
    """Read a promise written like "ttft_seconds:p99=0.5".

    Raises:
        UsageError: it is not of that form, or not about a latency.
    """
    form = re.fullmatch(r"(\w+):p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d*)?(?:e-?\d+)?)", text.strip())
    if form is None or not 0 < float(form[2]) < 100:
        msg = f"expected a promise like ttft_seconds:p99=0.5, got '{text}'"
        raise UsageError(msg)
    metric = find_metric(form[1])
    if metric.higher_is_better or metric.per == "launch":
        msg = f"expected a promise about a latency of single requests, got one about {metric.name}"
        raise UsageError(msg)
    return Promise(metric.name, round(float(form[2]) / 100, 12), float(form[3]))


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


def check_all(scenario: str, means: Mapping[Key, LaunchMeans], promises: Iterable[Promise]) -> list[SloLine]:
    """Return every promise checked for every engine in every cell, over the requests of all launches."""
    lines = []
    for promise in promises:
        for (engine, cell, metric), launches in means.items():
            if metric == promise.metric:
                verdict, bound, n, needed = check(launches.values, promise.quantile, promise.limit)
                lines.append(
                    SloLine(
                        scenario=scenario,
                        engine=engine,
                        cell=cell,
                        metric=metric,
                        quantile=promise.quantile,
                        limit=promise.limit,
                        verdict=verdict,
                        bound=bound,
                        n=n,
                        needed=needed,
                    )
                )
    return lines


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
