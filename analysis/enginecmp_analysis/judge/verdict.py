"""One word for one comparison, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from enginecmp.format.enough import LAUNCHES_NEEDED

Verdict = Literal["faster", "slower", "equivalent", "inconclusive", "withheld"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a verdict rests on.

    Attributes:
        log_ratio: log(engine / baseline) of the metric as it is named.
        ci_low: lower limit of the ratio.
        ci_high: upper limit of the ratio.
        p_adjusted: corrected p of "no difference".
        equivalence_p_adjusted: corrected p of "outside the margin".
        higher_is_better: which direction of the metric is good.
        full_launches: launches with enough requests, of the engine that has fewer of them.
    """

    log_ratio: float
    ci_low: float
    ci_high: float
    p_adjusted: float
    equivalence_p_adjusted: float
    higher_is_better: bool
    full_launches: int


def decide(evidence: Evidence, *, alpha: float = 0.05, min_launches: int = LAUNCHES_NEEDED) -> Verdict:
    """Return the verdict.

    *withheld* with fewer than `min_launches` full launches. *faster* or *slower* when the corrected p is below
    alpha and the interval is clear of 1. *equivalent* when the ratio was shown to lie inside the margin.
    Otherwise *inconclusive*: a p above alpha never means equal.
    """
    if evidence.full_launches < min_launches:
        return "withheld"
    clear = evidence.ci_low > 1 or evidence.ci_high < 1
    if clear and evidence.p_adjusted < alpha:
        return "faster" if (evidence.log_ratio > 0) == evidence.higher_is_better else "slower"
    if not math.isnan(evidence.equivalence_p_adjusted) and evidence.equivalence_p_adjusted < alpha:
        return "equivalent"
    return "inconclusive"
