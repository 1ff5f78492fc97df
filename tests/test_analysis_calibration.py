"""The promises of the method by simulation: a smoke of 300 repetitions; the long form is a command of its own."""

from __future__ import annotations

import math

import pytest

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.calibrate import (
    DESIGNS,
    Row,
    calibrate,
    main,
    pooled_launch_false_alarms,
    pooled_rank_false_alarms,
    to_markdown,
)
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options

REPETITIONS = 300

# Three standard errors of a share near 5 % in 300 repetitions, less the room that the limits have anyway.
SLACK = 0.025


@pytest.mark.parametrize("name", DESIGNS)
def test_false_alarms_coverage_power_and_equivalence_hold(name: str) -> None:
    # Five values a repetition tell their spread, and with it the effect that shall be found, less surely than ten do.
    repetitions = REPETITIONS if DESIGNS[name].nodes == 1 else 3 * REPETITIONS
    for row in calibrate({name: DESIGNS[name]}, repetitions=repetitions):
        assert row.broken(SLACK) == [], row


def test_every_required_kind_of_data_is_calibrated() -> None:
    designs = DESIGNS.values()
    assert {d.noise for d in designs} == {"normal", "lognormal", "pareto", "bimodal"}
    assert {d.rho for d in designs} == {0.0, 0.5, 0.9}
    for trait in ("slow_launches", "drift", "tick_seconds", "fewer_requests", "missing_launch", "run_spread"):
        assert any(getattr(d, trait) for d in designs), trait


def test_negative_control_pooled_requests_fail_the_same_check() -> None:
    # If this were quiet, the simulation above would prove nothing.
    assert pooled_rank_false_alarms(REPETITIONS) > 0.3
    assert pooled_launch_false_alarms(REPETITIONS) > 0.25


def test_a_broken_promise_is_named_and_the_command_fails(capsys: pytest.CaptureFixture[str]) -> None:
    good = Row("x", 10, 0.05, 0.95, 0.95, 0.05, 0.80, 0.05)
    bad = Row("y", 10, 0.07, 0.92, 0.95, 0.07, 0.75, 0.07)
    assert good.broken() == []
    assert len(bad.broken()) == 5
    assert "**broken: false alarms 0.070" in to_markdown([good, bad], 0.5, 0.4, 10)
    # So few repetitions cannot keep promises made to a per cent.
    assert main(["--repetitions", "8"]) == 1
    assert capsys.readouterr().out.count("\n| ") == 1 + 2 * len(DESIGNS)


def test_the_whole_pipeline_raises_no_more_false_alarms_than_its_parts() -> None:
    verdicts = []
    for seed in range(100):
        report = analyse([simulate_run(Design(), seed=seed)], Options(metrics=("throughput_tokens_per_second",))).report
        verdicts += [c.verdict for c in report.comparisons]
    assert len(verdicts) == 100
    # Five expected; 11 or more have a chance below 2 % if the rate is 5 %.
    assert sum(v in ("faster", "slower") for v in verdicts) <= 11
    assert "withheld" not in verdicts


def test_a_planted_ratio_is_covered_through_the_whole_pipeline() -> None:
    held = 0
    for seed in range(100):
        report = analyse([simulate_run(Design(ratio=1.10), seed=1000 + seed)]).report
        (found,) = [c for c in report.comparisons if c.metric == "e2e_seconds"]
        held += found.ci_low <= 1.10 <= found.ci_high
        assert math.isfinite(found.p_adjusted)
    assert held >= 88
