"""What a reader is told about launches and methods: each note once where it is due, and never on steady data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options, candidates, judge
from enginecmp_analysis.render.table import render
from enginecmp_analysis.schema.stats import Comparison


def _slowed(run: Run, factor: NDArray[np.float64]) -> Run:
    """Return a run whose requests of "engine" take longer by a factor for each index."""
    columns = run.columns
    target = (columns.engine == columns.engines.index("engine")) & (columns.phase == 2)
    spent = columns.end_ns - columns.start_ns
    extra = np.where(target, spent * (factor[columns.index] - 1), 0).astype(np.int64)
    start = columns.start_ns - extra
    return dataclasses.replace(run, columns=dataclasses.replace(columns, start_ns=start, intended_ns=start))


def _told(run: Run, part: str) -> bool:
    return any(part in warning for warning in analyse([run]).report.warnings)


def test_steady_independent_requests_are_not_remarked_upon() -> None:
    for seed in range(5):
        assert analyse([simulate_run(Design(requests=60), seed=seed)]).report.warnings == []


def test_requests_that_slow_down_inside_every_launch_are_told() -> None:
    run = _slowed(simulate_run(Design(requests=20)), 1 + 0.3 * np.arange(20) / 19)
    assert _told(run, "engine: requests get")
    assert _told(run, "% slower from first to last in a launch")


def test_correlated_requests_are_told_with_their_effective_number() -> None:
    assert _told(simulate_run(Design(requests=200, rho=0.9)), "2000 requests count as")


def test_launches_that_differ_by_more_than_five_percent_are_told() -> None:
    assert _told(simulate_run(Design(launch_spread=0.15)), "more than 5 % from launch to launch")


def test_launches_without_a_steady_state_are_counted() -> None:
    step = np.where(np.arange(200) < 150, 1.0, 1.5)
    assert _told(_slowed(simulate_run(Design(requests=200)), step), "engine: 10 of 10 launches reach no steady state")


def test_launches_that_slow_down_are_counted() -> None:
    step = np.where(np.arange(200) < 60, 1.0, 1.5)
    assert _told(_slowed(simulate_run(Design(requests=200)), step), "engine: 10 of 10 launches slow down")


def _means(values: NDArray[np.float64]) -> LaunchMeans:
    tens = np.full(len(values), 10)
    return LaunchMeans([(0, b) for b in range(len(values))], values, tens, tens, np.repeat(values, 10))


def _judged(log_ratios: NDArray[np.float64], baseline: NDArray[np.float64]) -> Comparison:
    metric = "ttft_seconds"
    means: dict[Key, LaunchMeans] = {
        ("a", None, metric): _means(baseline),
        ("b", None, metric): _means(baseline * np.exp(log_ratios)),
    }
    (found,) = judge("s", candidates(means, [("a", "b")], [None], [metric], metric), Options())
    return found


def test_a_permutation_test_that_disagrees_is_told() -> None:
    # All six blocks agree in sign, which has a chance of 2 / 64; one outlier hides it from t.
    found = _judged(np.array([0.01, 0.01, 0.012, 0.009, 0.011, 0.3]), np.ones(6))
    assert found.p_value > 0.05
    assert found.warnings[0].startswith("sign-flip permutation disagrees with t: p=0.031 against 0.")


def test_agreeing_methods_are_not_remarked_upon() -> None:
    assert _judged(np.random.default_rng(1).normal(0.1, 0.01, 12), np.ones(12)).warnings == []


def test_a_ratio_of_plain_means_that_differs_is_told() -> None:
    rng = np.random.default_rng(2)
    # The engine is as fast on most launches and ten times slower on some: logs and means weigh that differently.
    slow = np.where(np.arange(12) % 4 == 0, np.log(10), 0.0) + rng.normal(0, 0.01, 12)
    assert any("(Fieller)" in warning for warning in _judged(slow, np.ones(12)).warnings)


@pytest.mark.parametrize("ratio", [1.01, 1 / 1.01])
def test_a_real_difference_inside_the_margin_is_told_to_be_small(ratio: float) -> None:
    found = _judged(np.random.default_rng(3).normal(np.log(ratio), 0.001, 12), np.ones(12))
    assert found.verdict in ("faster", "slower")
    assert found.warnings == ["the difference is real but smaller than the ±3 % that counts as equivalent"]


def _all_of_engine(run: Run, reason: str) -> Run:
    columns = run.columns
    excluded = columns.excluded.copy()
    excluded[(columns.engine == 1) & (columns.phase == MEASURE)] = 1
    return dataclasses.replace(run, columns=dataclasses.replace(columns, reasons=("", reason), excluded=excluded))


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("foreign_cpu", "engine: nothing was measured: all 100 requests are flagged (foreign_cpu 100); "),
        ("error", "engine: nothing was measured: none of 100 requests ended well and unflagged: error 100"),
    ],
)
def test_an_engine_of_which_nothing_was_measured_is_told_first(reason: str, told: str) -> None:
    analysis = analyse([_all_of_engine(simulate_run(), reason)])
    assert analysis.report.warnings[0].startswith(told)
    assert render(analysis)[0][0].startswith(f"! {told[:40]}")
    assert sum("nothing was measured" in text for text, _ in render(analysis)) == 1


def test_nothing_at_all_is_said_in_the_first_line() -> None:
    run = _all_of_engine(simulate_run(engines=("baseline", "engine")), "error")
    run.columns.excluded[:] = 1
    lines = [text for text, _ in render(analyse([run]))]
    assert lines[0] == "nothing to show: no request ended well and unflagged"
    assert lines[1].startswith("! baseline: nothing was measured: none of 100 requests ended well")
