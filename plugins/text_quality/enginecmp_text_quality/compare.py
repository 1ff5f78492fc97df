"""Engines against each other, item by item: a paired bootstrap over items, and what is too near the floor to rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp_analysis.statistics.multiplicity import holm
from enginecmp_text_quality.scores import Scored

SAMPLES = 2000
"""Bootstrap samples: a 95 % limit is then known to about a tenth of the standard error."""

ABOVE_FLOOR = 1.0
"""Points, of 100, by which the lower limit of a score must lie above the floor for it to be ranked."""


class Score(msgspec.Struct, kw_only=True):
    """One engine's score.

    Attributes:
        engine: label.
        metric: BLEU, chrF, ROUGE-L or pass@1.
        signature: how it was computed.
        value: 0 to 100.
        low: lower 95 % limit.
        high: upper one.
        floor: score of the same answers dealt to other items: what texts get that answer nothing.
        near_floor: too near to be ranked.
    """

    engine: str
    metric: str
    signature: str
    value: float
    low: float
    high: float
    floor: float
    near_floor: bool


class Difference(msgspec.Struct, kw_only=True):
    """One engine less the baseline.

    Attributes:
        engine: label.
        baseline: label.
        metric: as `Score.metric`.
        points: engine less baseline.
        low: lower 95 % limit.
        high: upper one.
        p_value: two-sided, of the paired bootstrap.
        p_adjusted: Holm over the engines of a metric.
        verdict: better, worse, not told apart, identical, or near the floor.
        items_that_differ: answers that are not the same text.
    """

    engine: str
    baseline: str
    metric: str
    points: float
    low: float
    high: float
    p_value: float
    p_adjusted: float
    verdict: str
    items_that_differ: int = 0


def resampled(scored: Scored, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the score of every bootstrap sample.

    Args:
        scored: of one engine.
        draws: (samples, N) numbers of items.
    """
    return np.array([scored.of_sums(scored.per_item[draw].sum(axis=0)) for draw in draws])


def draws_of(items: int, seed: int) -> NDArray[np.int64]:
    """Return which items each bootstrap sample holds, the same for every engine (Koehn 2004, section 4)."""
    return np.random.default_rng(seed).integers(items, size=(SAMPLES, items))


def compare(
    found: Mapping[str, Scored],
    floors: Mapping[str, Scored],
    answers: Mapping[str, Sequence[str]],
    baseline: str,
    seed: int,
) -> tuple[list[Score], list[Difference]]:
    """Return the scores of one metric, and every engine's difference to the baseline.

    Args:
        found: label → scored answers, in the order of the run.
        floors: label → the same answers dealt to other items.
        answers: label → texts.
        baseline: label that others are compared with.
        seed: of the bootstrap.
    """
    draws = draws_of(len(next(iter(found.values())).per_item), seed)
    sampled = {label: resampled(scored, draws) for label, scored in found.items()}
    scores = []
    for label, scored in found.items():
        above = sampled[label] - resampled(floors[label], draws)
        low, high = np.quantile(sampled[label], [0.025, 0.975])
        scores.append(
            Score(
                engine=label,
                metric=scored.metric,
                signature=scored.signature,
                value=scored.value,
                low=float(low),
                high=float(high),
                floor=floors[label].value,
                near_floor=bool(np.quantile(above, 0.025) < ABOVE_FLOOR),
            )
        )
    near = {score.engine for score in scores if score.near_floor}
    differences = []
    for label, scored in found.items():
        if label == baseline:
            continue
        apart = sampled[label] - sampled[baseline]
        low, high = np.quantile(apart, [0.025, 0.975])
        # Two-sided: how often the sampled difference lies on the other side of zero, a draw of our own counted in.
        tail = min((apart <= 0).sum(), (apart >= 0).sum())
        differences.append(
            Difference(
                engine=label,
                baseline=baseline,
                metric=scored.metric,
                points=scored.value - found[baseline].value,
                low=float(low),
                high=float(high),
                p_value=min(1.0, 2 * (1 + int(tail)) / (1 + SAMPLES)),
                p_adjusted=1.0,
                verdict="",
                items_that_differ=sum(a != b for a, b in zip(answers[label], answers[baseline], strict=True)),
            )
        )
    for difference, adjusted in zip(differences, holm([one.p_value for one in differences]), strict=True):
        difference.p_adjusted = float(adjusted)
        difference.verdict = _verdict(difference, near)
    return scores, differences


def _verdict(difference: Difference, near: set[str]) -> str:
    if not difference.items_that_differ:
        return "identical"
    if {difference.engine, difference.baseline} & near:
        return "near the floor"
    if difference.p_adjusted < 0.05 and not difference.low <= 0 <= difference.high:
        return "better" if difference.points > 0 else "worse"
    return "not told apart"
