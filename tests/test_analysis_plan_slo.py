"""Plans and objectives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from enginecmp.errors import UsageError
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.decisions.slo import Objective, check, check_all, parse_objectives
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.plan import launch_costs, plan
from enginecmp_analysis.schema.stats import Plan


def _analysed(design: Design, engines: tuple[str, ...] = ("baseline", "engine")) -> Analysis:
    return analyse([simulate_run(design, engines=engines)])


def _plan(design: Design, detect: float) -> Plan:
    found = plan(_analysed(design).groups[0], Options(), detect)
    assert found is not None
    return found


def test_objectives_are_read_as_written() -> None:
    assert parse_objectives("ttft_seconds:p99=0.5") == [Objective("ttft_seconds", 0.99, 0.5)]
    assert parse_objectives("itl_seconds:p99.9=2e-2") == [Objective("itl_seconds", 0.999, 0.02)]
    assert parse_objectives("ttft_p95<200ms, tpot_p95<=30.5ms,e2e_p99.9<2s,itl_seconds_p50<900us") == [
        Objective("ttft_seconds", 0.95, 0.2),
        Objective("tpot_seconds", 0.95, 0.0305),
        Objective("e2e_seconds", 0.999, 2.0),
        Objective("itl_seconds", 0.5, 0.0009),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "ttft_seconds<0.5",
            "expected an SLO objective like ttft_p95<200ms or .*, got 'ttft_seconds<0.5'",
        ),
        ("ttft_p95<0.2", "expected a limit with its unit .us, ms or s., like ttft_p95<200ms, got 'ttft_p95<0.2'"),
        ("ttft_p95<2min", "expected a limit with its unit"),
        ("ttft_p95<200ms,", "expected an SLO objective like .*, got ''"),
        ("tftt_p95<200ms", "unknown metric 'tftt' .*; did you mean 'ttft'"),
        ("ttft_seconds:p0=0.5", "expected an SLO objective like"),
        ("ttft_second:p99=0.5", "did you mean 'ttft_seconds'"),
        ("decode_tokens_per_second:p99=5", "a latency of single requests"),
        ("load_seconds:p99=5", "a latency of single requests"),
    ],
)
def test_an_objective_that_is_none_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_objectives(text)


def test_too_few_requests_prove_nothing() -> None:
    found = check(np.ones(63), 0.9, 2.0)
    assert (found.verdict, found.n, found.needed) == ("n/a", 63, 64)
    assert check(np.ones(64), 0.9, 2.0).verdict == "pass"


def test_the_bound_is_the_highest_value_that_the_rule_leaves() -> None:
    # 64 requests allow one slow one at p90: the bound is the maximum.
    values = np.arange(64, dtype=float)
    assert check(values, 0.9, 63.0) == ("pass", 63.0, 64, 64)
    assert check(values, 0.9, 62.9).verdict == "fail"
    many = check(np.arange(10_000, dtype=float), 0.9, 1e9)
    # Above the sample quantile, because it is a 99 % bound, but not by much.
    assert 9000 < many.bound < 9100


def test_an_objective_is_kept_only_with_confidence() -> None:
    rng = np.random.default_rng(3)
    kept = [check(rng.exponential(size=300), 0.9, math.log(10)).verdict for _ in range(300)]
    # The limit is the true quantile: the rule may pass it in 1 % of cases.
    assert kept.count("pass") <= 9


def test_objectives_are_checked_for_every_engine_and_cell() -> None:
    group = _analysed(Design(requests=20)).groups[0]
    lines = check_all(
        "s", group.means, [Objective("ttft_seconds", 0.9, 0.05), Objective("ttft_seconds", 0.99, 0.05)], {}
    )
    assert [(line.engine, line.quantile, line.verdict) for line in lines] == [
        ("baseline", 0.9, "pass"),
        ("engine", 0.9, "pass"),
        ("baseline", 0.99, "n/a"),
        ("engine", 0.99, "n/a"),
    ]
    assert {line.needed for line in lines} == {64, 662}


def test_costs_are_those_of_the_simulated_machine() -> None:
    cost = launch_costs(_analysed(Design(blocks=10, requests=30)).groups[0], "engine")
    assert cost is not None
    # A load of 1.0 to 1.05 s, requests of 0.1 s, a millisecond between them.
    assert cost.launch == pytest.approx(1.025, abs=0.05)
    assert cost.request == pytest.approx(0.101, rel=0.1)


def test_noise_inside_launches_asks_for_requests_and_noise_between_them_for_blocks() -> None:
    inside = _plan(Design(blocks=30, requests=30, launch_spread=0.002), 0.02)
    between = _plan(Design(blocks=30, requests=30, launch_spread=0.05), 0.02)
    assert inside.requests > 2 * between.requests
    assert between.blocks > 3 * inside.blocks


def test_components_of_the_plan_are_those_that_were_planted() -> None:
    (row,) = _plan(Design(blocks=100, requests=50, launch_spread=0.03), 0.02).rows
    assert row.between == pytest.approx(0.03 * math.sqrt(2), rel=0.2)
    assert row.within == pytest.approx(0.1 * math.sqrt(2), rel=0.15)


def test_a_smaller_difference_costs_more_and_ten_blocks_are_the_least() -> None:
    coarse, fine = (_plan(Design(blocks=20), detect) for detect in (0.5, 0.01))
    assert coarse.blocks == 10
    assert fine.blocks > coarse.blocks
    assert fine.seconds > coarse.seconds


def test_the_planned_run_finds_what_it_was_planned_for() -> None:
    planned = _plan(Design(blocks=60, requests=20, launch_spread=0.03), 0.03)
    hits = 0
    for seed in range(60):
        design = Design(blocks=planned.blocks, requests=planned.requests, launch_spread=0.03, ratio=1 / 1.03)
        report = analyse([simulate_run(design, seed=500 + seed)]).report
        hits += next(c.verdict for c in report.comparisons if c.primary) == "faster"
    # 80 % of 60, give or take three standard errors.
    assert 38 <= hits <= 58


def test_one_engine_or_one_launch_give_no_plan() -> None:
    assert plan(_analysed(Design(), engines=("baseline",)).groups[0], Options(), 0.02) is None
    assert plan(_analysed(Design(blocks=1)).groups[0], Options(), 0.02) is None
