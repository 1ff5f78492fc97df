"""When requests arrive: drawn before the start, from the run's seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from enginecmp.errors import UsageError
from enginecmp.format.records import Arrival

NS = 1_000_000_000


def arrival_seed(seed: int, block: int, cell_number: int) -> int:
    """Return the seed of one cell's arrivals: the same for every engine of a block, different between blocks."""
    return random.Random(f"{seed}/arrivals/{block}/{cell_number}").getrandbits(64)


def gaps(arrival: Arrival, rate_per_second: float, burstiness: float, n: int, seed: int) -> NDArray[np.float64]:
    """Return n times between arrivals in seconds, with mean 1 / rate.

    Poisson arrivals have exponential gaps. Gamma ones have shape `burstiness` and so a coefficient of variation of
    1 / sqrt(burstiness): 1 is Poisson, below 1 comes in bursts, above 1 is more even (the meaning that vLLM's
    benchmark gives the word).

    Args:
        arrival: "constant", "poisson" or "gamma".
        rate_per_second: mean rate.
        burstiness: of gamma arrivals.
        n: how many.
        seed: of the draw.
    """
    mean = 1 / rate_per_second
    if arrival == "constant":
        return np.full(n, mean)
    draw = np.random.default_rng(seed)
    if arrival == "poisson":
        return draw.exponential(mean, n)
    return draw.gamma(burstiness, mean / burstiness, n)


def arrivals(
    arrival: Arrival,
    rate_per_second: float,
    *,
    warmups: int,
    requests: int,
    seconds: float | None = None,
    burstiness: float = 1.0,
    trace_seconds: Sequence[float] = (),
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return when each request of an open loop is due, in nanoseconds after the first one, rising.

    The first `warmups` warm up; what is measured follows without a pause.

    Args:
        arrival: how they come.
        rate_per_second: mean rate; not used by a trace.
        warmups: requests that warm up.
        requests: measured requests; with `seconds` the least of them.
        seconds: measured requests arrive for so long; None counts requests alone.
        burstiness: of gamma arrivals.
        trace_seconds: of a trace: its recorded times, rising; all of them are replayed, or those within `seconds`.
        seed: of the draw.

    Raises:
        UsageError: a trace is too short to leave anything to measure.
    """
    if arrival == "trace":
        due = np.asarray(trace_seconds, float)
        if len(due) <= warmups:
            msg = f"trace: expected more than {warmups} arrivals, the first {warmups} warm up; it has {len(due)}"
            raise UsageError(msg)
        due -= due[0]
        kept = due if seconds is None else due[: max(warmups + 1, int(np.sum(due <= due[warmups] + seconds)))]
        return _whole(kept)
    wanted = warmups + requests
    due = _from_zero(gaps(arrival, rate_per_second, burstiness, wanted, seed))
    if seconds is not None:
        # More are drawn until the time is full: the same seed begins with the same gaps.
        while due[-1] - due[warmups] <= seconds:
            due = _from_zero(gaps(arrival, rate_per_second, burstiness, 2 * len(due), seed))
        due = due[: max(wanted, int(np.sum(due <= due[warmups] + seconds)))]
    return _whole(due)


def _from_zero(between: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return times from the gaps before them, the first at 0."""
    return np.concatenate([[0.0], np.cumsum(between[1:])])


def _whole(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return seconds as whole nanoseconds."""
    nanoseconds: NDArray[np.int64] = np.rint(seconds * NS).astype(np.int64)
    return nanoseconds
