"""Warm-up, change points, drift, correlation and tails on series whose truth is known."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from enginecmp_analysis.statistics.changepoint import change_points
from enginecmp_analysis.statistics.stationarity import (
    autocorrelation,
    correlation,
    drift_inside,
    effective_sample_size,
    trend,
)
from enginecmp_analysis.statistics.tails import tail_index
from enginecmp_analysis.statistics.variance import launch_components
from enginecmp_analysis.statistics.warmup import classify, mser5, steadiness

Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def _ar(rng: np.random.Generator, rho: float, n: int) -> Floats:
    z = rng.standard_normal(n)
    for i in range(1, n):
        z[i] = rho * z[i - 1] + math.sqrt(1 - rho**2) * z[i]
    return z


def _brute_force(values: Floats, penalty: float) -> float:
    """Return the best cost over all segmentations, by dynamic programming without pruning."""
    n = len(values)
    floor = max(float(values.var()) * 1e-6, 1e-300)

    def cost(a: int, b: int) -> float:
        return (b - a) * (math.log(2 * math.pi) + math.log(max(float(values[a:b].var()), floor)) + 1)

    best = [-penalty] + [math.inf] * n
    for end in range(2, n + 1):
        best[end] = min(best[start] + cost(start, end) + penalty for start in range(end - 1))
    return best[n]


def test_pruning_loses_no_better_segmentation(rng: np.random.Generator) -> None:
    for _ in range(10):
        x = np.concatenate(
            [rng.normal(m, s, 12) for m, s in zip(rng.normal(0, 3, 3), rng.uniform(0.5, 2, 3), strict=True)]
        )
        edges = [0, *change_points(x, 8.0), len(x)]
        floor = max(float(x.var()) * 1e-6, 1e-300)
        cost = sum(
            (b - a) * (math.log(2 * math.pi) + math.log(max(float(x[a:b].var()), floor)) + 1)
            for a, b in pairwise(edges)
        )
        assert cost + 8.0 * (len(edges) - 2) == pytest.approx(_brute_force(x, 8.0))


def test_a_jump_of_the_mean_is_found_where_it_is(rng: np.random.Generator) -> None:
    x = np.r_[rng.normal(0, 1, 50), rng.normal(8, 1, 50)]
    assert change_points(x) == [50]


def test_steady_noise_has_no_change_points(rng: np.random.Generator) -> None:
    assert sum(bool(change_points(rng.normal(size=60))) for _ in range(50)) == 0
    assert change_points([1.0] * 40) == []
    assert change_points([1.0, 2.0, 3.0]) == []


@pytest.mark.parametrize(
    ("shape", "kind", "begin"),
    [
        (np.r_[np.full(60, 1.5), np.full(240, 1.0)], "warm-up", 60),
        (np.r_[np.full(100, 1.0), np.full(200, 1.2)], "slow-down", 100),
        (np.r_[np.full(240, 1.0), np.full(60, 1.2)], "no steady state", 0),
        (np.ones(300), "flat", 0),
        (np.ones(30), None, 0),
    ],
    ids=["warm-up", "slow-down", "no steady state", "flat", "too short"],
)
def test_launches_are_classified(rng: np.random.Generator, shape: Floats, kind: str | None, begin: int) -> None:
    assert classify(shape * rng.normal(1, 0.01, len(shape))) == (kind, begin)


def test_mser_finds_the_end_of_an_exponential_warm_up(rng: np.random.Generator) -> None:
    i = np.arange(300)
    x = 1 + 0.5 * np.exp(-i / 8) + rng.normal(0, 0.01, 300)
    # Where the excess has fallen to the noise: 8 ln(50) is 31.
    assert 20 <= mser5(x) <= 60


def test_one_engines_warm_up_is_cut_from_all(rng: np.random.Generator) -> None:
    i = np.arange(200)
    warm = [1 + 0.5 * np.exp(-i / 10) + rng.normal(0, 0.02, 200) for _ in range(10)]
    steady = [1 + rng.normal(0, 0.02, 200) for _ in range(10)]
    found = steadiness({"cold": warm, "steady": steady})
    assert 20 <= found.cut <= 100
    assert set(found.classes["steady"]) == {"flat"}


def test_steady_launches_are_not_cut_even_when_correlated(rng: np.random.Generator) -> None:
    cuts = [steadiness({"a": [1 + 0.05 * _ar(rng, 0.5, 60) for _ in range(10)]}).cut for _ in range(40)]
    assert sum(cut > 0 for cut in cuts) <= 3


def test_a_cut_leaves_ten_requests_and_a_floor_is_kept(rng: np.random.Generator) -> None:
    jump = [np.r_[np.full(12, 2.0), np.full(20, 1.0)] * rng.normal(1, 0.001, 32) for _ in range(10)]
    assert steadiness({"a": jump}).cut <= 16
    assert steadiness({"a": [np.ones(5)]}, floor=2).cut == 2


def test_a_long_warm_up_of_one_engine_leaves_half_of_anothers_short_launches(rng: np.random.Generator) -> None:
    cold = [np.r_[np.full(60, 1.5), np.full(140, 1.0)] * rng.normal(1, 0.01, 200) for _ in range(10)]
    assert steadiness({"cold": cold}).cut == 60
    assert steadiness({"cold": cold, "short": [rng.normal(1, 0.01, 50) for _ in range(10)]}).cut == 25
    assert steadiness({"cold": cold, "short": [rng.normal(1, 0.01, 14) for _ in range(10)]}).cut == 4


def test_trend_agrees_with_scipy(rng: np.random.Generator) -> None:
    x = np.round(np.arange(40) * 0.05 + rng.normal(size=40), 1) + 10
    found = trend(x)
    assert found.tau == pytest.approx(stats.kendalltau(np.arange(40), x).statistic)
    assert found.change == pytest.approx(stats.theilslopes(x).slope * 39 / np.median(x))
    # The continuity correction makes ours a little larger.
    asymptotic = stats.kendalltau(np.arange(40), x, method="asymptotic").pvalue
    assert asymptotic < found.p_value < 1.1 * asymptotic


def test_trend_of_nothing_is_nothing() -> None:
    assert math.isnan(trend([1.0, 1.0, 1.0, 1.0, 1.0]).tau)
    assert math.isnan(trend([1.0, 2.0]).p_value)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(rng: np.random.Generator, rho: float) -> None:
    n = 4000
    found = np.mean([effective_sample_size(_ar(rng, rho, n)) for _ in range(10)])
    # n (1 - rho) / (1 + rho), the textbook value.
    assert found == pytest.approx(n * (1 - rho) / (1 + rho), rel=0.15)


def test_lag_one_correlation_is_told_and_constant_series_have_none(rng: np.random.Generator) -> None:
    assert correlation([_ar(rng, 0.6, 100) for _ in range(20)]).lag_one == pytest.approx(0.6, abs=0.08)
    assert np.isnan(autocorrelation([1.0] * 10, 2)).all()
    assert correlation([np.ones(5)]).n == 0


def test_drift_inside_launches_is_measured_and_absent_drift_is_not(rng: np.random.Generator) -> None:
    ramp = 1 + 0.1 * np.arange(50) / 49
    growth, p = drift_inside([ramp * rng.normal(1, 0.01, 50) for _ in range(10)])
    assert growth == pytest.approx(0.1 / 1.05, abs=0.01)
    assert p < 1e-6
    assert drift_inside([rng.normal(1, 0.01, 50) for _ in range(10)])[1] > 0.01


def test_infinite_variance_is_told_from_a_merely_long_tail(rng: np.random.Generator) -> None:
    assert tail_index(1 + rng.pareto(1.5, 20000)) < 2
    assert tail_index(1 + rng.pareto(3.0, 20000)) > 2.5
    assert tail_index(rng.lognormal(0, 0.5, 20000)) > 3
    assert tail_index(np.ones(1000)) == math.inf
    assert math.isnan(tail_index([1.0, 2.0]))


def test_variance_between_and_within_launches_is_recovered(rng: np.random.Generator) -> None:
    launches = [rng.normal(m, 2.0, n) for m, n in zip(rng.normal(0, 1.0, 400), rng.integers(5, 30, 400), strict=True)]
    between, within = launch_components(launches)
    assert within == pytest.approx(4.0, rel=0.1)
    assert between == pytest.approx(1.0, rel=0.25)
    assert all(math.isnan(x) for x in launch_components([np.ones(3)]))
