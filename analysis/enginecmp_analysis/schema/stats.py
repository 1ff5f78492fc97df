"""What `cmp stats --json` prints: schema "enginecmp-stats/1". NaN is written as null."""

from __future__ import annotations

import msgspec

from enginecmp.format.records import Cell
from enginecmp_analysis.schema.decisions import Capacity, ExpectationRow, LimitRow, Money, ParetoRow, QualityRow

STATS_SCHEMA = "enginecmp-stats/1"


class Details(msgspec.Struct, kw_only=True):
    """What other methods say of a comparison; `cmp stats --details`.

    Attributes:
        method: "paired" inside blocks, or "welch".
        sign_flip_p: of the sign-flip permutation over blocks; null when unpaired.
        equivalence_p: of "the ratio is outside the margin" (two one-sided tests), uncorrected.
        fieller_low: lower limit of the ratio of plain means.
        fieller_high: upper limit likewise.
        request_below_baseline: how often a single value of the engine is below one of the baseline; descriptive.
        cliffs_delta: 2 * request_below_baseline - 1; descriptive.
    """

    method: str
    sign_flip_p: float
    equivalence_p: float
    fieller_low: float
    fieller_high: float
    request_below_baseline: float
    cliffs_delta: float


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
        n_runs: runs, or nodes where the runs are of several, on which interval and p rest; only where they are pooled.
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
        launches_needed: more launches of each engine for a verdict; 0 when launches are not what is missing, null when
            unknown.
        runs_needed: more runs for a verdict, null when unknown; only where several are pooled.
        requests_needed: valid requests that a launch needs to count, where most launches have fewer; else 0.
        unproven: which of the two engines are comparable on the timed file alone, their exactness unproven; absent
            where both are proven.
        warnings: what a reader must know, one sentence each.
        details: what other methods say; only where asked for.
    """

    scenario: str
    cell: Cell | None
    metric: str
    primary: bool
    baseline: str
    engine: str
    n_launches: int
    n_runs: int | msgspec.UnsetType = msgspec.UNSET
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
    runs_needed: int | msgspec.UnsetType | None = msgspec.UNSET
    requests_needed: int = 0
    unproven: list[str] | msgspec.UnsetType = msgspec.UNSET
    warnings: list[str]
    details: Details | msgspec.UnsetType = msgspec.UNSET


class Ranked(msgspec.Struct, kw_only=True):
    """One engine's place in a ranking.

    Attributes:
        engine: label.
        rank: one more than the number of engines shown to be better; null without a verdict and for engines that are
            not comparable.
        letters: engines that share a letter were not shown to differ.
        mean: mean of launch means, unit in the metric's name.
        ratio_to_best: this engine / the first one of the metric as named; null for the first.
        ci_low: lower limit of that ratio, at the level at which Holm's method tested the pair among all pairs (95 % or
            more): the interval leaves out 1 exactly where the two were told apart.
        ci_high: upper limit likewise.
        n_launches: launches behind the mean.
    """

    engine: str
    rank: int | None
    letters: str
    mean: float
    ratio_to_best: float
    ci_low: float
    ci_high: float
    n_launches: int


class Ranking(msgspec.Struct, kw_only=True):
    """All engines of one cell on the primary metric, best first; all pairs, Holm over them.

    Attributes:
        scenario: name of the scenario.
        cell: point of the grid; null for what belongs to a whole launch.
        metric: name with unit.
        higher_is_better: which direction is good.
        decided: whether every pair has the launches that a verdict takes.
        transitive: whether engines that were not shown to differ form groups without overlap; else letters decide.
        rows: best first; engines that are not comparable at the end.
    """

    scenario: str
    cell: Cell | None
    metric: str
    higher_is_better: bool
    decided: bool
    transitive: bool
    rows: list[Ranked]


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
        flagged: true where every request of the engine is flagged, and these are theirs; absent elsewhere.
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
    flagged: bool | msgspec.UnsetType = msgspec.UNSET


class SloLine(msgspec.Struct, kw_only=True):
    """One objective for a tail; `cmp stats --slo`.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        cell: point of the grid.
        metric: name with unit.
        quantile: e.g. 0.99.
        limit: largest value allowed.
        verdict: pass, fail, or "n/a" with too few requests.
        bound: upper 99 % confidence bound of the quantile.
        n: requests (token gaps for itl_seconds).
        needed: how many it takes to say anything.
    """

    scenario: str
    engine: str
    cell: Cell | None
    metric: str
    quantile: float
    limit: float
    verdict: str
    bound: float
    n: int
    needed: int


class PlanRow(msgspec.Struct, kw_only=True):
    """What one comparison asks of the next run.

    Attributes:
        cell: point of the grid.
        baseline: label.
        engine: label.
        between: standard deviation of the log ratio from launch to launch, taken at its upper 80 % bound.
        within: standard deviation of the log ratio of single requests inside launches.
        best_requests: requests a launch that this comparison alone would choose.
    """

    cell: Cell | None
    baseline: str
    engine: str
    between: float
    within: float
    best_requests: float


class Plan(msgspec.Struct, kw_only=True):
    """The next run; `cmp stats --plan`.

    Attributes:
        scenario: name of the scenario.
        metric: planned for.
        detect: relative difference that is found with probability 0.8.
        blocks: launches of each engine.
        requests: measured requests a launch and cell.
        seconds: how long it will take, all engines together.
        rows: one a comparison.
        command: what starts such a run, but for blocks and requests; "" where the run's folder does not tell.
    """

    scenario: str
    metric: str
    detect: float
    blocks: int
    requests: int
    seconds: float
    rows: list[PlanRow]
    command: str = ""


class Finding(msgspec.Struct, kw_only=True):
    """Something that the data say of one engine beyond its metrics: a leak, a trend, a cache.

    Attributes:
        scenario: name of the scenario.
        topic: what it is about, e.g. "leak", "clock"; docs/METHODOLOGY.md lists them.
        engine: label.
        cell: point of the grid; null for what belongs to the whole of them.
        verdict: one word or two for machines, e.g. "leaks", "no leak", "open".
        value: the number behind it.
        ci_low: lower 95 % limit.
        ci_high: upper 95 % limit.
        n_launches: launches (or blocks) behind it.
        text: the finding in words.
        notable: whether the table shows it; the others are here for machines.
        details: further numbers by name.
    """

    scenario: str
    topic: str
    engine: str
    cell: Cell | None
    verdict: str
    value: float
    ci_low: float
    ci_high: float
    n_launches: int
    text: str
    notable: bool = True
    details: dict[str, float] = {}


class StatsReport(msgspec.Struct, kw_only=True):
    """Everything that `cmp stats` found.

    Attributes:
        schema: "enginecmp-stats/1".
        rankings: a cell each, on the primary metric.
        comparisons: primary metrics first.
        summaries: every engine by itself.
        warnings: what concerns the whole of it.
        findings: what else the data say; only where there is something.
        slos: only where objectives were given.
        plans: only where asked for.
        quality: only where it was measured.
        expectations: only where the scenario has claims.
        money: only with prices.
        capacity: only with objectives and a demand or a budget.
        limits: only of searches for the largest load.
        pareto: only where engines can be weighed in two kinds of objective at least.
    """

    schema: str = STATS_SCHEMA
    rankings: list[Ranking] = []
    comparisons: list[Comparison] = []
    summaries: list[Summary] = []
    warnings: list[str] = []
    findings: list[Finding] | msgspec.UnsetType = msgspec.UNSET
    slos: list[SloLine] | msgspec.UnsetType = msgspec.UNSET
    plans: list[Plan] | msgspec.UnsetType = msgspec.UNSET
    quality: list[QualityRow] | msgspec.UnsetType = msgspec.UNSET
    expectations: list[ExpectationRow] | msgspec.UnsetType = msgspec.UNSET
    money: Money | msgspec.UnsetType = msgspec.UNSET
    capacity: Capacity | msgspec.UnsetType = msgspec.UNSET
    limits: list[LimitRow] | msgspec.UnsetType = msgspec.UNSET
    pareto: list[ParetoRow] | msgspec.UnsetType = msgspec.UNSET
