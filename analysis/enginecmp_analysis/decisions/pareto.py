"""Who is dominated: better in something, no worse in anything, and proven so."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import NamedTuple, TypeVar

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.metrics import Metric, metric_of
from enginecmp_analysis.decisions.money import COSTS, PRIMARY_COST, costs
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.decisions.quality import difference, quality_rows, worse_than_reference
from enginecmp_analysis.judge.compare import NO_SPREAD
from enginecmp_analysis.judge.judge import Options, candidates
from enginecmp_analysis.schema.decisions import ParetoRow, QualityRow
from enginecmp_analysis.statistics.multiplicity import holm
from enginecmp_analysis.statistics.student import t_upper_tail

Who = TypeVar("Who", bound=Hashable)

MEMORY = "peak_rss_above_empty_bytes"
QUALITY = "quality"

NORMAL_DF = 1e6
"""Degrees of freedom at which Student's t is the normal distribution."""


class Advantage(NamedTuple):
    """How much better A is than B in one objective, on a log scale.

    Attributes:
        objective: its name.
        estimate: log of how many times better; above 0 is better.
        se: its standard error; 0 for numbers that do not vary.
        df: degrees of freedom.
    """

    objective: str
    estimate: float
    se: float
    df: float

    def p_above(self, limit: float) -> float:
        """Return the one-sided p of "the advantage is at most `limit`"."""
        if self.se <= 0:
            return 0.0 if self.estimate > limit else 1.0
        return float(t_upper_tail((self.estimate - limit) / self.se, self.df))


def pareto(group: GroupResult, options: Options, prices: Prices | None) -> list[ParetoRow]:
    """Return for every comparable engine whether another one is shown to dominate it.

    Objectives are the primary metric in every cell, peak memory, cost, and quality, as far as all engines have
    them. A dominates B when A is shown to be no worse than B by more than the margin in every objective (every
    one-sided p must pass: an intersection-union test, which needs no correction) and better in one (the smallest p
    times the number of objectives). The larger of the two is the p of the pair, corrected by Holm over all ordered
    pairs. On quality the margin is one of perplexity, whose logarithm is nats.

    Returns:
        One row an engine; nothing where fewer than two engines or two kinds of objective were measured.
    """
    labels = [label for label in group.context.engines if label not in group.context.not_comparable]
    objectives, rows = _objectives(group, prices), quality_rows(group)
    found = {(a, b): list(_advantages(objectives, rows, a, b)) for a, b in permutations(labels, 2)}
    shared = set.intersection(*({x.objective for x in some} for some in found.values())) if found else set()
    kinds = list(dict.fromkeys(x.objective for some in found.values() for x in some if x.objective in shared))
    if len(kinds) < 2 or group.context.primary_metric not in kinds or options.include_flagged:
        return []
    weighed = {pair: [x for x in some if x.objective in shared] for pair, some in found.items()}
    answers = [ParetoRow(scenario=group.context.scenario, engine=label, objectives=kinds) for label in labels]
    dominations = dominated(weighed, options.margin, options.alpha)
    for row in answers:
        if row.engine in dominations:
            row.dominated_by, row.better_in, row.p_adjusted = dominations[row.engine]
    return answers


def dominated(
    found: Mapping[tuple[Who, Who], Sequence[Advantage]], margin: float, alpha: float
) -> dict[Who, tuple[Who, list[str], float]]:
    """Return who is shown to be dominated, and by whom: by the rule of `pareto`, over all ordered pairs given.

    Args:
        found: (A, B) → advantages of A over B; a pair without any is not shown to differ, and counts all the same.
        margin: what counts as no worse.
        alpha: level of the whole family.

    Returns:
        Dominated → who dominates it, the objectives in which that was shown to be better, and the corrected p.
    """
    pairs, p_values, better = list(found), [], []
    for advantages in found.values():
        above = [x.p_above(0.0) for x in advantages]
        no_worse = max((x.p_above(-math.log1p(margin)) for x in advantages), default=1.0)
        p_values.append(max(no_worse, min(1.0, len(above) * min(above, default=1.0))))
        names = [x.objective for x, p in zip(advantages, above, strict=True) if p * len(above) < alpha]
        better.append(list(dict.fromkeys(names)))
    adjusted = holm(p_values)
    answers: dict[Who, tuple[Who, list[str], float]] = {}
    for who in dict.fromkeys(b for _, b in pairs):
        over = [i for i, (_, b) in enumerate(pairs) if b == who]
        best = min(over, key=lambda i: p_values[i])
        if adjusted[best] < alpha:
            answers[who] = (pairs[best][0], better[best], float(adjusted[best]))
    return answers


class _Objective(NamedTuple):
    """Launch values in which engines are weighed, and how to read them."""

    name: str
    means: Mapping[Key, LaunchMeans]
    find: Callable[[str], Metric]


def _objectives(group: GroupResult, prices: Prices | None) -> list[_Objective]:
    found = [_Objective(name, group.means, metric_of) for name in (group.context.primary_metric, MEMORY) if name]
    if prices is not None:
        found.append(_Objective(PRIMARY_COST, costs(group, prices)[0], COSTS.__getitem__))
    return found


def _advantages(objectives: Sequence[_Objective], rows: Sequence[QualityRow], a: str, b: str) -> Iterator[Advantage]:
    """Yield how much better A is than B, objective by objective and cell by cell."""
    for name, means, find in objectives:
        cells = [cell for engine, cell, metric in means if engine == a and metric == name]
        for candidate in candidates(means, [(b, a)], cells, [name], name, find):
            found = candidate.found
            # Bytes may be the same in every launch; a time that never varies was not measured.
            exact = name == MEMORY and math.isfinite(float(found.estimate)) and float(found.se) <= NO_SPREAD
            if candidate.full_launches >= LAUNCHES_NEEDED and (exact or bool(found.decidable)):
                sign = 1 if candidate.higher_is_better else -1
                se = 0.0 if exact else float(found.se)
                yield Advantage(name, sign * float(found.estimate), se, float(found.df))
    mine, other = worse_than_reference(rows, a), worse_than_reference(rows, b)
    if mine is not None and other is not None:
        lost = difference(mine, other)
        yield Advantage(QUALITY, -lost.nats, lost.se, NORMAL_DF)
