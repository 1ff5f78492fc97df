"""What `cmp stats --json` prints: schema "enginecmp-stats/1". NaN is written as null."""

from __future__ import annotations

import msgspec

from enginecmp.types import Cell

STATS_SCHEMA = "enginecmp-stats/1"


class Comparison(msgspec.Struct, kw_only=True):
    """One engine against the baseline, on one metric in one cell.

    Attributes:
        scenario: name of the scenario.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        primary: whether the scenario declared this metric as the one to decide on.
        baseline: label of the engine compared with.
        engine: label of the engine judged.
        n_launches: launches (paired: blocks) that were compared.
        n_samples: requests of the engine behind them.
        ratio: engine / baseline of the metric as named.
        ci_low: lower 95 % limit of the ratio.
        ci_high: upper 95 % limit.
        sci_low: lower limit that holds for the whole primary family at once; null for exploratory metrics.
        sci_high: upper limit likewise.
        p_value: of "the ratio is 1", uncorrected.
        p_adjusted: corrected: Holm in the primary family, Benjamini-Hochberg among the exploratory ones.
        verdict: faster, slower, equivalent, inconclusive or withheld.
        mde: smallest relative difference that this measurement finds with probability 0.8.
        launches_needed: more launches of each engine for a verdict; 0 when there is one, null when unknown.
        warnings: what a reader must know, one sentence each.
    """

    scenario: str
    cell: Cell | None
    metric: str
    primary: bool
    baseline: str
    engine: str
    n_launches: int
    n_samples: int
    ratio: float
    ci_low: float
    ci_high: float
    sci_low: float
    sci_high: float
    p_value: float
    p_adjusted: float
    verdict: str
    mde: float
    launches_needed: int | None
    warnings: list[str]


class Summary(msgspec.Struct, kw_only=True):
    """One engine on one metric in one cell, by itself.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        n_launches: launches.
        n_samples: requests behind them.
        mean: mean of launch means.
        ci_low: lower 95 % limit of that mean.
        ci_high: upper 95 % limit.
        p50: median of single values over all launches; null when there are too few to bound it.
        p90: likewise.
        p95: likewise.
        p99: likewise.
        cv_launches: standard deviation of launch means over their mean.
    """

    scenario: str
    engine: str
    cell: Cell | None
    metric: str
    n_launches: int
    n_samples: int
    mean: float
    ci_low: float
    ci_high: float
    p50: float
    p90: float
    p95: float
    p99: float
    cv_launches: float


class StatsReport(msgspec.Struct, kw_only=True):
    """Everything that `cmp stats` found.

    Attributes:
        schema: "enginecmp-stats/1".
        comparisons: primary metrics first.
        summaries: every engine by itself.
        warnings: what concerns the whole of it.
    """

    schema: str = STATS_SCHEMA
    comparisons: list[Comparison] = []
    summaries: list[Summary] = []
    warnings: list[str] = []
