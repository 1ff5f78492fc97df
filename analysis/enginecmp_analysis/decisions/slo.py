"""Service-level objectives: a limit for a tail, kept or not, with the sample size that such a claim takes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from enginecmp.errors import UsageError, did_you_mean, meant
from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.launches import Block, Key, LaunchMeans
from enginecmp_analysis.data.levels import levels_of
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, find_metric
from enginecmp_analysis.schema.stats import SloLine
from enginecmp_analysis.statistics.beta import incomplete_beta
from enginecmp_analysis.statistics.student import mean_interval

CONFIDENCE = 0.99
"""Of the early-stopping rule, as MLPerf LoadGen sets it."""


class Objective(NamedTuple):
    """A limit for a quantile of a latency.

    Attributes:
        metric: name of a latency.
        quantile: e.g. 0.99.
        limit: largest value allowed, in the metric's unit.
    """

    metric: str
    quantile: float
    limit: float

    def __str__(self) -> str:
        """Return the objective as people read it."""
        return f"p{self.quantile * 100:g} {self.metric} <= {self.limit:g}"


_PERCENTILE = r"p(?P<percentile>\d{1,2}(?:\.\d+)?)"
_NUMBER = r"(?P<limit>\d+(?:\.\d*)?(?:e-?\d+)?)"
_IN_SECONDS = re.compile(rf"(?P<metric>[\w-]+):{_PERCENTILE}={_NUMBER}")
_WITH_UNIT = re.compile(rf"(?P<metric>[a-z0-9_-]+?)[_-]{_PERCENTILE}\s*<=?\s*{_NUMBER}\s*(?P<unit>[a-zµμ]*)")
_UNITS = {"us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_SHORT = {name: f"{name}_seconds" for name in ("ttft", "itl", "tpot", "e2e")}


def all_objectives(texts: Iterable[str]) -> list[Objective]:
    """Read the objectives of several texts, as an option that may be given more than once; see `parse_objectives`."""
    return [objective for text in texts for objective in parse_objectives(text)]


def parse_objectives(text: str) -> list[Objective]:
    """Read objectives like "ttft_p95<200ms,tpot_p95<30ms", or one like "ttft_seconds:p99=0.5" (in seconds).

    Raises:
        UsageError: one is not of that form, lacks its unit, or is not about a latency.
    """
    return [_objective(part.strip()) for part in text.split(",")]


def _objective(text: str) -> Objective:
    form = _IN_SECONDS.fullmatch(text) or _WITH_UNIT.fullmatch(text)
    if form is None or not 0 < float(form["percentile"]) < 100:
        msg = f"expected an SLO objective like ttft_p95<200ms or ttft_seconds:p95=0.2, got '{text}'"
        raise UsageError(msg)
    scale = 1.0
    if "unit" in form.groupdict():
        if form["unit"] not in _UNITS:
            msg = f"expected a limit with its unit (us, ms or s), like ttft_p95<200ms, got '{text}'"
            raise UsageError(msg)
        scale = _UNITS[form["unit"]]
    name = meant(_SHORT.get(form["metric"], form["metric"]), METRICS)
    if name not in METRICS:
        msg = f"unknown metric '{name}' in the objective '{text}'{did_you_mean(name, [*_SHORT, *METRICS])}"
        raise UsageError(msg)
    metric = find_metric(name)
    if metric.higher_is_better or metric.per == "launch":
        msg = f"expected an SLO objective about a latency of single requests, got one about {metric.name}"
        raise UsageError(msg)
    return Objective(metric.name, round(float(form["percentile"]) / 100, 12), float(form["limit"]) * scale)


class SloResult(NamedTuple):
    """What the data say about one objective.

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


def check(values: ArrayLike, q: float, limit: float, confidence: float = CONFIDENCE) -> SloResult:
    """Return whether the q-quantile stays within a limit, by MLPerf's early-stopping rule.

    With n requests, t is the largest number of slow ones that still proves the quantile with confidence 0.99; the
    t-th highest value is then an upper bound of it. Requests are taken as independent.

    Args:
        values: (n,) latencies.
        q: quantile, e.g. 0.99.
        limit: largest latency allowed, in the unit of the values.
        confidence: of the bound.
    """
    data = np.sort(np.asarray(values, dtype=np.float64))
    n, needed = len(data), required_requests(q, 1, confidence)
    if n < needed:
        return SloResult("n/a", math.nan, n, needed)
    low, high = 1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if required_requests(q, middle, confidence) <= n else (low, middle)
    bound = float(data[n - low])
    return SloResult("pass" if bound <= limit else "fail", bound, n, needed)


def check_all(
    scenario: str,
    means: Mapping[Key, LaunchMeans],
    objectives: Iterable[Objective],
    failed: Mapping[tuple[str, Cell], Mapping[Block, int]],
) -> list[SloLine]:
    """Return every objective checked for every engine in every cell, over the requests of all launches.

    Args:
        scenario: name of the scenario.
        means: launches of a group.
        objectives: what was asked for.
        failed: from `failed_requests`: a request that never ended well met no objective.
    """
    lines = []
    for objective in objectives:
        for (engine, cell, metric), launches in means.items():
            if metric == objective.metric and cell is not None:
                lost = sum(failed.get((engine, cell), {}).values())
                values = np.r_[launches.values, np.full(lost, np.inf)]
                verdict, bound, n, needed = check(values, objective.quantile, objective.limit)
                lines.append(
                    SloLine(
                        scenario=scenario,
                        engine=engine,
                        cell=cell,
                        metric=metric,
                        quantile=objective.quantile,
                        limit=objective.limit,
                        verdict=verdict,
                        bound=bound,
                        n=n,
                        needed=needed,
                    )
                )
    return lines


def failed_requests(runs: Sequence[Run]) -> dict[tuple[str, Cell], dict[Block, int]]:
    """Return how many measured requests failed, by engine and cell, block by block."""
    found: dict[tuple[str, Cell], dict[Block, int]] = {}
    for level, run in zip(levels_of(runs).of_runs, runs, strict=True):
        columns = run.columns
        for row in np.flatnonzero((columns.phase == MEASURE) & columns.failed()).tolist():
            place = columns.engines[int(columns.engine[row])], columns.cells[int(columns.cell[row])]
            blocks = found.setdefault(place, {})
            block = level.block(int(columns.block[row]))
            blocks[block] = blocks.get(block, 0) + 1
    return found


class Kept(NamedTuple):
    """What the data say about one objective in one cell when neither answer is taken for granted.

    Attributes:
        state: "kept" or "broken" when proven with confidence 0.99, else "open".
        n: requests.
        slow: requests beyond the limit.
        needed: requests in all that would prove it kept, at the share of slow ones seen; None where more requests
            will not do.
        launches_differ: pooled requests prove it, launches taken one by one do not.
    """

    state: Literal["kept", "broken", "open"]
    n: int
    slow: int
    needed: int | None
    launches_differ: bool


def keeps(launches: Sequence[ArrayLike], q: float, limit: float, confidence: float = CONFIDENCE) -> Kept:
    """Return whether the q-quantile stays within a limit, proven either way or open.

    Two questions, each with confidence 0.99, must agree: a binomial one over all requests (kept: the rule of
    `check`; broken: P(Binomial(n, 1 - q) >= slow) <= 0.01), and Student's t on the share of slow requests of each
    launch, because requests of one launch are alike and pooled ones would be believed too early.

    Args:
        launches: latencies of each launch, infinite for requests that failed.
        q: quantile, e.g. 0.95.
        limit: largest latency allowed.
        confidence: of each of the two questions.
    """
    parts = [np.asarray(part, dtype=np.float64) for part in launches]
    values = np.concatenate([np.empty(0), *parts])
    n, slow = len(values), int((values > limit).sum())
    pooled = "open"
    if check(values, q, limit, confidence).verdict == "pass":
        pooled = "kept"
    elif slow and incomplete_beta(slow, n - slow + 1, 1 - q) <= 1 - confidence:
        # P(Binomial(n, p) >= k) = I_p(k, n - k + 1)
        pooled = "broken"
    shares = np.array([(part > limit).mean() for part in parts if len(part)])
    _, low, high = mean_interval(shares, 2 * confidence - 1) if len(shares) else (0, math.nan, math.nan)
    agree = (pooled == "kept" and high <= 1 - q) or (pooled == "broken" and low > 1 - q)
    state: Literal["kept", "broken", "open"] = "open"
    if agree:
        state = "kept" if pooled == "kept" else "broken"
    needed = _requests_to_keep(slow / n, q) if n and pooled != "broken" else None
    return Kept(state, n, slow, needed, pooled != "open" and not agree)


def _requests_to_keep(share: float, q: float) -> int | None:
    """Return the requests at which the rule passes if the share of slow ones stays what it is."""
    allowed = 1
    while allowed <= 2048:
        n = required_requests(q, allowed)
        # The rule's bound is the value of rank `allowed` from the top: fewer than that many may be slow.
        if share * n <= allowed - 1:
            return n
        allowed += max(1, allowed // 8)
    return None


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
