"""How many machines: what is proven, what is refuted, and when the data cannot tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from decision_runs import ladder, request, run_of

from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.decisions.capacity import Need, Point, bounds, capacity, machines
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.decisions.slo import Objective, check, check_all, failed_requests, keeps, parse_objectives
from enginecmp_analysis.schema.decisions import Capacity

TTFT = parse_objectives("ttft_p90<200ms")
TWO_AN_HOUR = Prices("EUR", everything=2.0)


def _capacity(
    run: Run, demand: float | None = None, budget: float | None = None, prices: Prices | None = None
) -> Capacity:
    return capacity(analyse([run]), Need(TTFT, demand, budget, prices))


def test_an_objective_is_kept_broken_or_open() -> None:
    fast, slow = np.full(40, 0.1), np.full(40, 0.5)
    assert keeps([fast] * 10, 0.9, 0.2).state == "kept"
    assert keeps([slow] * 10, 0.9, 0.2).state == "broken"
    # One in ten is what a p90 allows: no number of requests proves either side.
    even = np.r_[np.full(36, 0.1), np.full(4, 0.5)]
    assert keeps([even] * 10, 0.9, 0.2) == ("open", 400, 40, None, False)


def test_what_is_missing_is_the_sample_size_of_the_rule() -> None:
    # MLPerf LoadGen: 64 requests for p90, 662 for p99 with one slow one to spare.
    assert keeps([np.full(20, 0.1)] * 3, 0.9, 0.2) == ("open", 60, 0, 64, False)
    assert keeps([np.full(20, 0.1)] * 3, 0.99, 0.2).needed == 662


def test_one_bad_launch_is_not_outvoted_by_the_requests_of_the_others() -> None:
    launches = [np.full(40, 0.1)] * 9 + [np.r_[np.full(20, 0.1), np.full(20, 0.5)]]
    found = keeps(launches, 0.9, 0.2)
    # 20 slow ones of 400 would prove a p90 if they were spread over all launches.
    assert (found.state, found.launches_differ) == ("open", True)
    assert keeps([np.r_[np.full(38, 0.1), np.full(2, 0.5)]] * 10, 0.9, 0.2).state == "kept"


def _claims_at_the_limit(concentration: float) -> tuple[float, float]:
    """Return how often a p90 of exactly its limit is called kept or broken, and how often by pooled requests alone."""
    rng = np.random.default_rng(8)
    claimed = pooled = 0
    for _ in range(400):
        shares = rng.beta(concentration, 9 * concentration, 10)
        launches = [np.where(rng.random(40) < share, 0.5, 0.1) for share in shares]
        claimed += keeps(launches, 0.9, 0.2).state != "open"
        pooled += check(np.concatenate(launches), 0.9, 0.2).verdict == "pass"
    return claimed / 400, pooled / 400


def test_at_the_limit_itself_hardly_a_claim_is_made() -> None:
    # Each side may be claimed wrongly in 1 % of cases.
    alike, _ = _claims_at_the_limit(1e6)
    assert alike <= 0.03
    differing, pooled = _claims_at_the_limit(3.0)
    assert differing <= 0.03
    # Negative control: without a look at the launches the objective would be passed far too often.
    assert pooled >= 0.05


def test_requests_that_failed_kept_no_objective() -> None:
    run = ladder({"baseline": {1.0: 0}}, failed={("baseline", 1.0): 8})
    (group,) = analyse([run]).groups
    (line,) = check_all("s", group.means, [Objective("ttft_seconds", 0.9, 0.2)], failed_requests(group.runs))
    assert (line.n, line.verdict, line.bound) == (480, "fail", math.inf)
    (row,) = _capacity(run).rows
    assert (row.rate_low, row.rate_high) == (None, 1.0)


def test_the_rate_lies_between_the_largest_kept_and_the_smallest_broken() -> None:
    (row,) = _capacity(ladder({"baseline": {1.0: 0, 2.0: 0, 4.0: 4, 8.0: 30}}), 12.0, 12.0, TWO_AN_HOUR).rows
    assert (row.rate_low, row.rate_high) == (2.0, 8.0)
    # 12 / 8 and 12 / 2, rounded up, at two an hour each.
    assert (row.machines_low, row.machines_high) == (2, 6)
    assert (row.cost_low, row.cost_high, row.fits) == (4.0, 12.0, "yes")
    assert row.answer == (
        "2 to 8 requests/s a machine; 2 to 6 machines: the data cannot tell; 4.00 to 12.00 EUR/h; fits the budget"
    )
    assert len(row.measure) == 1
    assert row.measure[0].startswith("Poisson 4/s, at most 8 at once: 40 of 400 requests exceed p90 ttft_seconds")


@pytest.mark.parametrize(("budget", "fits"), [(12.0, "yes"), (11.0, "cannot tell"), (3.0, "no")])
def test_the_budget_is_held_against_both_ends(budget: float, fits: str) -> None:
    (row,) = _capacity(ladder({"baseline": {2.0: 0, 8.0: 40}}), 12.0, budget, TWO_AN_HOUR).rows
    assert row.fits == fits
    assert row.measure == ["rates between Poisson 2/s, at most 8 at once and Poisson 8/s, at most 8 at once"]


def test_nothing_is_said_of_rates_beyond_the_measured_ones() -> None:
    (row,) = _capacity(ladder({"baseline": {1.0: 0, 2.0: 0}}), 9.0, 4.0, TWO_AN_HOUR).rows
    assert (row.rate_low, row.rate_high, row.machines_low, row.machines_high) == (2.0, None, None, 5)
    assert row.fits == "cannot tell"
    assert "more was not measured; at most 5 machines" in row.answer
    assert row.measure == [
        "heavier loads: Poisson 2/s, at most 8 at once is the heaviest measured, and it keeps the SLO"
    ]


def test_one_machine_is_the_least_there_is() -> None:
    (row,) = _capacity(ladder({"baseline": {2.0: 0}}), 1.0, 1.0, TWO_AN_HOUR).rows
    assert (row.machines_low, row.machines_high, row.fits) == (1, 1, "no")
    assert machines(0.1, 2.0) == 1
    assert machines(0.3, 0.1) == 3


def test_when_no_load_keeps_it_lighter_ones_are_asked_for() -> None:
    (row,) = _capacity(ladder({"baseline": {4.0: 40, 8.0: 40}}), 12.0).rows
    assert (row.rate_low, row.rate_high, row.machines_low, row.machines_high) == (None, 4.0, 3, None)
    assert "no measured load is proven to keep the SLO; 4/s breaks it" in row.answer
    assert "the data cannot tell (3 or more)" in row.answer
    assert row.measure == ["rates below Poisson 4/s, at most 8 at once: the lightest load measured breaks the SLO"]


def test_too_few_requests_say_how_many_are_missing() -> None:
    (row,) = _capacity(ladder({"baseline": {2.0: 0}}, blocks=3, requests=20), 12.0).rows
    assert row.answer.startswith("the data cannot tell what a machine sustains")
    assert row.measure == [
        "Poisson 2/s, at most 8 at once: p90 ttft_seconds <= 0.2 takes 64 requests, 60 were measured: 4 more"
    ]


def test_a_load_kept_above_one_that_is_broken_proves_nothing() -> None:
    cell = Cell(1, 1)
    kept, broken, again = Point(cell, "kept", 1, 1, ""), Point(cell, "broken", 2, 2, ""), Point(cell, "kept", 4, 4, "")
    assert bounds([kept, broken, again]) == (1, 2)


def test_in_a_closed_loop_the_rate_is_what_launches_reached() -> None:
    samples = []
    for users, first in ((1, 0.1), (2, 0.5)):
        cell = Cell(100, 5, users)
        for block in range(10):
            for i in range(20):
                start = i * (1 + 0.01 * block)
                samples.append(request(start, start + 0.9, start + first, cell=cell, block=block, index=i))
    analysis = analyse([run_of(samples)])
    rates = analysis.groups[0].means["baseline", Cell(100, 5, 1), "requests_per_second"].means
    (row,) = capacity(analysis, Need(TTFT)).rows
    assert row.loop == "closed"
    assert row.rate_low is not None
    assert row.rate_low < rates.mean() < row.rate_low * 1.1
    assert row.measure[-1].startswith("an open loop")


def test_a_budget_without_a_demand_says_what_it_buys() -> None:
    (row,) = _capacity(ladder({"baseline": {2.0: 0, 4.0: 40}}), None, 7.0, TWO_AN_HOUR).rows
    assert (row.budget_machines, row.budget_rate) == (3, 6.0)
    assert row.answer == "2 to 4 requests/s a machine; the budget buys 3 machines: at least 6 requests/s"


def test_an_engine_is_named_only_where_no_other_can_be_cheaper() -> None:
    clear = _capacity(ladder({"baseline": {1.0: 0, 2.0: 40}, "engine": {2.0: 0, 4.0: 0}}), 12.0, None, TWO_AN_HOUR)
    assert clear.choices == ["simulated, prompt 100 → output 5 tokens, poisson arrivals: engine"]
    unclear = _capacity(ladder({"baseline": {1.0: 0, 8.0: 40}, "engine": {2.0: 0, 4.0: 40}}), 12.0)
    (choice,) = unclear.choices
    assert choice.endswith("the data cannot tell engine from baseline")
    poor = _capacity(ladder({"baseline": {1.0: 0, 2.0: 40}, "engine": {1.0: 0, 2.0: 40}}), 12.0, 3.0, TWO_AN_HOUR)
    assert poor.choices[0].endswith("no engine serves the demand within the budget")


def test_prices_decide_between_a_fast_machine_and_a_cheap_one() -> None:
    prices = Prices("", per_hour={"baseline": 1.0, "engine": 5.0})
    run = ladder({"baseline": {1.0: 0, 2.0: 40}, "engine": {2.0: 0, 4.0: 40}})
    # 12 machines at 1 against 6 at 5.
    assert _capacity(run, 12.0, None, prices).choices[0].endswith(": baseline")
    assert _capacity(run, 12.0).choices[0].endswith(": engine")
