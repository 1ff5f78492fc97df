"""How many tokens a request has: fixed, uniform, lognormal, or as recorded; drawn from the run's seed alone.

The lengths of one launch are a stratified sample: request i takes a place inside the i-th of n equal parts of the
distribution, in an order drawn from the seed. Each request has the distribution itself, and ten of them cover it, which
ten independent draws often do not (Cochran, Sampling Techniques, ch. 5).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import NormalDist
from typing import TypeAlias

import msgspec

_NORMAL = NormalDist()

MOST_TOKENS = 1 << 31
"""No request is as long as that."""

MOST_VALUES = 1_000_000
"""Most lengths that a scenario records."""


class Uniform(msgspec.Struct, frozen=True, tag="uniform", tag_field="distribution", forbid_unknown_fields=True):
    """Every whole number from `least` to `most` is as likely."""

    least: int
    most: int


class Lognormal(msgspec.Struct, frozen=True, tag="lognormal", tag_field="distribution", forbid_unknown_fields=True):
    """A lognormal distribution cut off on both sides: what falls outside is not drawn, so nothing piles up there.

    Attributes:
        median: of the distribution before it is cut off, in tokens.
        sigma: standard deviation of the logarithm.
        most: largest length.
        least: smallest length.
    """

    median: float
    sigma: float
    most: int
    least: int = 1


class Recorded(msgspec.Struct, frozen=True, tag="recorded", tag_field="distribution", forbid_unknown_fields=True):
    """Any of these lengths, each as likely: what stood in a file, written into the manifest."""

    values: tuple[int, ...]


Lengths: TypeAlias = int | Uniform | Lognormal | Recorded
"""A distribution of lengths in tokens; a number alone is the same for every request."""


def limits(lengths: Lengths) -> tuple[int, int]:
    """Return the smallest and the largest length that can come."""
    if isinstance(lengths, int):
        return lengths, lengths
    if isinstance(lengths, Recorded):
        return min(lengths.values), max(lengths.values)
    return lengths.least, lengths.most


class Exponential(msgspec.Struct, frozen=True, tag="exponential", tag_field="distribution", forbid_unknown_fields=True):
    """Times as between Poisson arrivals, in seconds, around a mean."""

    mean: float


Seconds: TypeAlias = float | Exponential
"""A distribution of times; a number alone is the same for every request."""


def draw_seconds(seconds: Seconds, n: int, seed: str) -> list[float]:
    """Return n times, a stratified sample like that of `draw`."""
    if not isinstance(seconds, Exponential):
        return [float(seconds)] * n
    return [-seconds.mean * math.log1p(-share) for share in _shares(n, seed)]


def problems(what: str, lengths: Lengths) -> Iterator[tuple[str, object]]:
    """Yield (what was expected, what came) for lengths that cannot be drawn from."""
    if isinstance(lengths, Recorded) and not 0 < len(lengths.values) <= MOST_VALUES:
        yield f"{what}.values: 1 to {MOST_VALUES} lengths", len(lengths.values)
        return
    least, most = limits(lengths)
    if not 1 <= least <= most < MOST_TOKENS:
        yield f"{what}: 1 <= least <= most < {MOST_TOKENS}", f"{least} and {most}"
    elif isinstance(lengths, Lognormal):
        if not (0 < lengths.median < MOST_TOKENS and 0 < lengths.sigma <= 10):
            yield f"{what}: median > 0 and sigma from above 0 to 10", f"{lengths.median:g} and {lengths.sigma:g}"
        elif not _span(lengths)[1] - _span(lengths)[0] > 1e-6:
            yield f"{what}: a median between least and most, or near", f"{lengths.median:g}"


def draw(lengths: Lengths, n: int, seed: str) -> list[int]:
    """Return n lengths in tokens: a stratified sample in an order drawn from the seed.

    Args:
        lengths: what from.
        n: how many.
        seed: of the draw; the same seed and number give the same lengths everywhere.
    """
    if isinstance(lengths, int):
        return [lengths] * n
    if isinstance(lengths, Recorded):
        lengths = Recorded(tuple(sorted(lengths.values)))
    return [quantile(lengths, share) for share in _shares(n, seed)]


def _shares(n: int, seed: str) -> Iterator[float]:
    """Yield a number from each of n equal parts of 0 to 1, the parts in an order drawn from the seed."""
    source = random.Random(seed)
    parts = list(range(n))
    source.shuffle(parts)
    yield from ((part + source.random()) / n for part in parts)


def quantile(lengths: Lengths, share: float) -> int:
    """Return the length below which a share of the distribution lies.

    Args:
        lengths: the distribution; recorded lengths from the smallest to the largest.
        share: from 0 to below 1.
    """
    if isinstance(lengths, int):
        return lengths
    if isinstance(lengths, Uniform):
        return min(lengths.most, lengths.least + int(share * (lengths.most - lengths.least + 1)))
    if isinstance(lengths, Recorded):
        return lengths.values[int(share * len(lengths.values))]
    low, high = _span(lengths)
    inside = min(max(low + share * (high - low), 1e-12), 1 - 1e-12)
    found = lengths.median * math.exp(lengths.sigma * _NORMAL.inv_cdf(inside))
    return min(lengths.most, max(lengths.least, round(found)))


def mean(lengths: Lengths) -> float:
    """Return the mean length in tokens, near enough for a forecast."""
    if isinstance(lengths, Recorded):
        return sum(lengths.values) / len(lengths.values)
    return sum(quantile(lengths, (part + 0.5) / 64) for part in range(64)) / 64


def _span(lengths: Lognormal) -> tuple[float, float]:
    """Return which part of the whole distribution lies between the cuts: half a token beyond each end."""
    low, high = (
        _NORMAL.cdf(math.log(end / lengths.median) / lengths.sigma)
        for end in (max(lengths.least - 0.5, 0.5), lengths.most + 0.5)
    )
    return low, high
