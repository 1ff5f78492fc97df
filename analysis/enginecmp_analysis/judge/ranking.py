"""Who is first, who shares a rank: all pairs of a cell on the primary metric, corrected as a family of their own.

The family is declared before the run: all comparable engines, the scenario's primary metric, one cell. It stands beside
the comparisons with the baseline and changes none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.metrics import metric_of
from enginecmp_analysis.judge.compare import LogRatio, match
from enginecmp_analysis.judge.judge import Options, full_launches, least_requests
from enginecmp_analysis.schema.stats import Ranked, Ranking
from enginecmp_analysis.statistics.letters import compact_letters
from enginecmp_analysis.statistics.multiplicity import holm, holm_confidence
from enginecmp_analysis.statistics.variance import group_means


def rank_cell(
    cell: Cell | None, context: Context, means: Mapping[Key, LaunchMeans], options: Options
) -> Ranking | None:
    """Rank the engines of one cell on the primary metric.

    An engine's rank is one more than the number of engines that were shown to be better. Where "cannot be told apart"
    is not transitive (A = B, B = C, A above C), letters say who shares with whom.

    Args:
        cell: point of the grid, or None for what belongs to a whole launch.
        context: of the group; its engines that are not comparable, or flagged throughout, are listed without a
            rank.
        means: launch means of the group.
        options: level of the tests.

    Returns:
        None where no engine has the primary metric in the cell.
    """
    metric = context.primary_metric
    there = {label: means[label, cell, metric] for label in context.engines if (label, cell, metric) in means}
    if not there:
        return None
    higher = metric_of(metric).higher_is_better
    sign = 1.0 if higher else -1.0
    shown = {*context.not_comparable, *context.flagged}
    compared = [label for label in there if label not in shown]
    # Best first by geometric means, which is what pairs are judged by.
    compared.sort(key=lambda label: -sign * _log_mean(there[label]))
    pairs = {
        (a, b): _Pair(there[compared[a]], there[compared[b]], metric) for a, b in combinations(range(len(compared)), 2)
    }
    p_values = [pair.p for pair in pairs.values()]
    adjusted = dict(zip(pairs, holm(p_values).tolist(), strict=True))
    levels = dict(zip(pairs, holm_confidence(p_values, 1 - options.alpha).tolist(), strict=True))
    full = not options.include_flagged and all(pair.full >= LAUNCHES_NEEDED for pair in pairs.values()) and bool(pairs)
    differ = [[False] * len(compared) for _ in compared]
    better = [0] * len(compared)
    for (a, b), p in adjusted.items():
        pair = pairs[a, b]
        if pair.full >= LAUNCHES_NEEDED and p < options.alpha and pair.clear(1 - options.alpha):
            differ[a][b] = differ[b][a] = True
            better[b if sign * float(pair.found.estimate) < 0 else a] += 1
    letters = compact_letters(differ)
    rows = [
        _ranked(
            label, there[label], better[at] + 1 if full else None, letters[at], pairs.get((0, at)), levels.get((0, at))
        )
        for at, label in enumerate(compared)
    ]
    rows += [_ranked(label, there[label], None, "", None, None) for label in there if label in shown]
    return Ranking(
        scenario=context.scenario,
        cell=cell,
        metric=metric,
        higher_is_better=higher,
        decided=full,
        transitive=_transitive(differ),
        rows=rows,
    )


class _Pair:
    """One pair: the first is the better one by its mean.

    Args:
        first: launch means.
        second: those of the other one.
        metric: which requests a launch needs.
    """

    def __init__(self, first: LaunchMeans, second: LaunchMeans, metric: str) -> None:
        matched = match(first, second)
        self.found: LogRatio = matched.log_ratio()
        self.p = float(self.found.p_value())
        self.full = full_launches(first, second, matched, least_requests(metric))

    def clear(self, confidence: float) -> bool:
        """Return whether the interval excludes 1."""
        low, high = (float(limit) for limit in self.found.interval(confidence))
        return low > 1 or high < 1


def _log_mean(launches: LaunchMeans) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(group_means(np.log(launches.means), [run for run, _ in launches.blocks]).mean())


def _ranked(
    label: str, launches: LaunchMeans, rank: int | None, letters: str, to_best: _Pair | None, confidence: float | None
) -> Ranked:
    ratio = low = high = math.nan
    if to_best is not None and confidence is not None:
        ratio = math.exp(float(to_best.found.estimate)) if math.isfinite(float(to_best.found.estimate)) else math.nan
        low, high = (float(limit) for limit in to_best.found.interval(confidence))
    return Ranked(
        engine=label,
        rank=rank,
        letters=letters,
        mean=float(launches.replicates().mean()),
        ratio_to_best=ratio,
        ci_low=low,
        ci_high=high,
        n_launches=len(launches.means),
    )


def _transitive(differ: Sequence[Sequence[bool]]) -> bool:
    """Return whether "not shown to differ" sorts the engines into groups without overlap."""
    n = len(differ)
    return not any(
        differ[i][k] and not differ[i][j] and not differ[j][k] for i in range(n) for j in range(n) for k in range(n)
    )
