"""What `cmp stats --json` says beyond speed: quality, claims, money, machines, and who is dominated."""

from __future__ import annotations

from typing import Literal

import msgspec

from enginecmp.format.records import Cell

Unset = msgspec.UnsetType


class QualityRow(msgspec.Struct, kw_only=True):
    """How close one engine computes to the reference on one file; an entry of the manifest's `equivalence`.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        quantization: the file that was scored.
        timed: whether that is the file whose timing is shown.
        verdict: of the equivalence gate.
        positions: positions scored.
        mean_kl: mean KL(reference || engine) in nats; null when it could not be had.
        top1: share of positions at which both name the same most likely token.
        perplexity: of the bundled text; null in runs that did not measure it, like everything below.
        reference_perplexity: the same of the reference.
        nll_difference: mean negative log-likelihood minus the reference's, in nats; above 0 is worse.
        nll_difference_low: lower 95 % limit.
        nll_difference_high: upper 95 % limit.
        greedy_agreement_tokens: greedy tokens until the engine parts from the reference; information only.
        proven_utc: when an earlier gate found this, where it was not asked again; absent elsewhere.
    """

    scenario: str
    engine: str
    quantization: str
    timed: bool
    verdict: str
    positions: int
    mean_kl: float | None
    top1: float | None
    perplexity: float | None
    reference_perplexity: float | None
    nll_difference: float | None
    nll_difference_low: float | None
    nll_difference_high: float | None
    greedy_agreement_tokens: int | None
    proven_utc: str | Unset = msgspec.UNSET


class ExpectationRow(msgspec.Struct, kw_only=True):
    """One claim held against the data in one cell.

    Attributes:
        scenario: name of the scenario.
        engine: label that the claim is about.
        metric: name with unit; "ratio" is the speed-up over the baseline on the primary metric, above 1 is better.
        cell: point of the grid; null for a whole launch, and where nothing was measured.
        low: smallest value that agrees with the claim; null for no lower end.
        high: largest value likewise.
        source: who claims it, of which machine.
        status: holds (the interval is inside), refuted (wholly outside), open (it straddles an end, or there are
            too few launches) or "not measured".
        actual: mean of launch means (of "ratio": the ratio); null when not measured.
        ci_low: lower 95 % limit of it.
        ci_high: upper 95 % limit.
        n_launches: launches behind it.
        off_by: how far the nearest limit of the interval is beyond the end of the claim, as a share of that end;
            0 unless refuted.
        reason: why it is open or not measured; empty otherwise.
        measured: date, engine's version and device, host's version and commit, hardware of the runs behind it.
        asked: whether it is a target of `--expect FILE`, not a claim that the run itself brings.
    """

    scenario: str
    engine: str
    metric: str
    cell: Cell | None
    low: float | None
    high: float | None
    source: str
    status: Literal["holds", "refuted", "open", "not measured"]
    actual: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n_launches: int = 0
    off_by: float = 0.0
    reason: str = ""
    measured: str = ""
    asked: bool = False


class CostRow(msgspec.Struct, kw_only=True):
    """One engine's cost, or requests an hour, in one cell.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        cell: point of the grid.
        metric: one of `money.COSTS`.
        price_per_hour: of the machine, in the currency of the report.
        charged: what the machine's time is charged to: "prefill to input, decode to output" (their sum is the
            whole), or "everything" (input and output are then two views of one sum, not to be added); empty where
            no time is charged to tokens.
        n_launches: launches.
        mean: mean of launch values.
        ci_low: lower 95 % limit of that mean.
        ci_high: upper 95 % limit.
    """

    scenario: str
    engine: str
    cell: Cell
    metric: str
    price_per_hour: float
    charged: str
    n_launches: int
    mean: float
    ci_low: float
    ci_high: float


class CostComparison(msgspec.Struct, kw_only=True):
    """One engine's cost against the baseline's; statistics as in `comparisons`.

    Attributes:
        scenario: name of the scenario.
        cell: point of the grid.
        metric: one of `money.COSTS`.
        primary: whether it belongs to the family that is corrected by Holm; the others are exploratory.
        baseline: label compared with.
        engine: label judged.
        n_launches: launches (paired: blocks) that were compared.
        ratio: engine / baseline, prices included.
        ci_low: lower 95 % limit of the ratio.
        ci_high: upper 95 % limit.
        p_value: of "the ratio is 1", uncorrected.
        p_adjusted: corrected.
        verdict: cheaper, costlier (of requests an hour: more, fewer), equivalent, inconclusive or withheld.
        launches_needed: more launches for a verdict; 0 when there is one, null when unknown.
        warnings: what a reader must know.
    """

    scenario: str
    cell: Cell | None
    metric: str
    primary: bool
    baseline: str
    engine: str
    n_launches: int
    ratio: float
    ci_low: float
    ci_high: float
    p_value: float
    p_adjusted: float
    verdict: str
    launches_needed: int | None
    warnings: list[str]


class Money(msgspec.Struct, kw_only=True):
    """What `cmp stats --price` found.

    Attributes:
        currency: as it was given; empty when none was.
        electricity_per_kwh: price of energy; null when none was given.
        rows: every engine by itself.
        comparisons: against the baseline.
        absent: what could not be had, and why.
    """

    currency: str
    electricity_per_kwh: float | None
    rows: list[CostRow]
    comparisons: list[CostComparison]
    absent: list[str]


class CapacityRow(msgspec.Struct, kw_only=True):
    """How many requests a second one machine sustains at the SLO, and how many machines that makes.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        prompt_tokens: of the requests.
        output_tokens: of the requests.
        loop: "open" (arrivals do not wait for answers) or "closed" (each user does).
        arrival: how requests arrived in an open loop; null in a closed one.
        rate_low: requests per second and machine that are proven to keep the SLO; null when none is.
        rate_high: rate at which it is proven broken; null when no measured rate breaks it.
        machines_low: fewest machines that may serve the demand; null when the data give no lower end.
        machines_high: machines that are proven to serve it; null when no rate is.
        cost_low: of `machines_low` an hour; null without a price.
        cost_high: of `machines_high` an hour.
        fits: whether the budget pays for it: yes, no, or "cannot tell"; null when no budget was given.
        budget_machines: machines that the budget buys; null without a budget.
        budget_rate: requests per second that these are proven to sustain; null likewise.
        answer: in words.
        measure: what would narrow it, one sentence each.
    """

    scenario: str
    engine: str
    prompt_tokens: int
    output_tokens: int
    loop: Literal["open", "closed"]
    arrival: str | None
    rate_low: float | None
    rate_high: float | None
    machines_low: int | None = None
    machines_high: int | None = None
    cost_low: float | None = None
    cost_high: float | None = None
    fits: Literal["yes", "no", "cannot tell"] | None = None
    budget_machines: int | None = None
    budget_rate: float | None = None
    answer: str = ""
    measure: list[str] = []


class Capacity(msgspec.Struct, kw_only=True):
    """What `cmp stats --slo ... --demand ... --budget ...` found.

    Attributes:
        slo: the objectives that all must be kept.
        demand_per_second: requests per second to serve; null when none was given.
        budget_per_hour: what may be spent; null when nothing was given.
        currency: of the prices.
        rows: one an engine, length of requests and kind of loop.
        choices: which engine, one sentence each.
    """

    slo: list[str]
    demand_per_second: float | None
    budget_per_hour: float | None
    currency: str
    rows: list[CapacityRow]
    choices: list[str]


class LimitRow(msgspec.Struct, kw_only=True):
    """What a search for the largest load found of one engine (`cmp run --find-max`).

    Attributes:
        scenario: name of the scenario.
        engine: label.
        load: concurrency or rate.
        unit: of the loads.
        slo: objectives that all must be kept.
        kept: largest load proven to keep them, below any that is proven to break them; null where there is none.
        broken: smallest load proven to break one; null where there is none.
        tried: loads that were measured.
        run: id of the run.
        text: in words.
    """

    scenario: str
    engine: str
    load: str
    unit: str
    slo: list[str]
    kept: float | None
    broken: float | None
    tried: list[float]
    run: str
    text: str


class ParetoRow(msgspec.Struct, kw_only=True):
    """Whether another engine is shown to be better in something and no worse in anything that was measured.

    Attributes:
        scenario: name of the scenario.
        engine: label.
        objectives: what was weighed.
        dominated_by: label of the engine that dominates it; null when none is shown to.
        better_in: objectives in which that one is shown to be better.
        p_adjusted: of "it is not dominated by that one", corrected by Holm over all pairs; null when not dominated.
    """

    scenario: str
    engine: str
    objectives: list[str]
    dominated_by: str | None = None
    better_in: list[str] = []
    p_adjusted: float | None = None
