"""Formulas against numbers that other people published, each with its source. No code of theirs is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from enginecmp_analysis.decisions.slo import required_requests
from enginecmp_analysis.judge.compare import welch
from enginecmp_analysis.statistics.beta import incomplete_beta
from enginecmp_analysis.statistics.quantiles import harrell_davis, needed_for_quantile, quantiles_or_nan
from enginecmp_analysis.statistics.ranks import rank_effect
from enginecmp_analysis.statistics.student import t_quantile, t_two_sided, t_upper_tail
from enginecmp_analysis.statistics.tails import cv_upper_bound
from enginecmp_analysis.statistics.variance import launch_components, optimal_repetitions

DATA = Path(__file__).parent / "data"


def _oracle(name: str) -> Any:
    return json.loads((DATA / f"oracle_{name}.json").read_text())


CRC = _oracle("benchstat_crc")["rows"]
NIST = _oracle("nist_anova")["sets"]


def test_ratios_of_medians_agree_with_benchstat() -> None:
    """Of its 72 rows, 38 have a delta; the others print "~"."""
    told = {(row["name"], row["unit"]): float(row["delta"].rstrip("%")) for row in CRC if row["delta"] != "~"}
    found = {}
    for row in CRC:
        old, new = (quantiles_or_nan(row[side], (0.5,))[0] for side in ("old", "new"))
        found[row["name"], row["unit"]] = 100 * (new / old - 1)
    assert (len(found), len(told)) == (72, 38)
    assert {key: found[key] for key in told} == pytest.approx(told, abs=0.0051)


# github.com/aclements/go-moremath c8bbc672ef66, stats/utest_test.go: Mann and Whitney's U of the first sample, the
# pairs in which it is larger, ties counted half.
S1, S2, S3, S4 = [2, 1, 3, 5], [12, 11, 13, 15], [0, 4, 6, 7], [2, 2, 2, 2]
L1 = [2 * i for i in range(500)]
L2 = [2 * i - 41 for i in range(600)]
L3 = L1[:30] + L2[30:]


@pytest.mark.parametrize(
    ("first", "second", "u"),
    [
        (S1, S2, 0),
        (S2, S1, 16),
        (S1, S3, 5),
        (S1, S1, 8),
        (S1, S4, 10),
        (L1, L2, 135250),
        (L1, L1, 125000),
        (L1, L3, 134845),
    ],
    ids=["apart", "apart, swapped", "interleaved", "itself", "all tied", "large", "large, itself", "large, tied"],
)
def test_effect_size_agrees_with_the_u_of_go_moremath(first: list[int], second: list[int], u: float) -> None:
    pairs = len(first) * len(second)
    found = rank_effect(first, second)
    assert (1 - found.below) * pairs == pytest.approx(u, rel=1e-12)
    assert found.cliffs_delta == pytest.approx(1 - 2 * u / pairs, abs=1e-12)


# github.com/softdevteam/libkalibera 46d972aa2b55, python/tests/test_data.py, among them the worked example of
# Kalibera & Jones 2013.
WORKED: list[list[list[float]]] = [[[9, 5], [8, 3]], [[10, 6], [7, 11]], [[1, 12], [2, 4]]]


def test_variance_components_of_the_worked_example_with_two_levels() -> None:
    between, within = launch_components(list(np.reshape(WORKED, (3, 4))))
    assert [round(within, 1), round(between, 1)] == [12.7, 0.4]


def test_optimal_repetitions_of_libkalibera() -> None:
    # Its components, and costs from the highest level down: 100, 20 and 3 seconds.
    components = [0.7266667, 0.262777778, 0.7747]
    assert optimal_repetitions(components, [3, 20, 100]) == pytest.approx([4.2937, 1.3023], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "digits"),
    # SmLs04 and SmLs07 add 1e6 and 1e12 to the values of SmLs01: what float64 keeps of them is all there is.
    [("SiRstv", 1e-12), ("AtmWtAg", 1e-8), ("SmLs01", 1e-12), ("SmLs04", 1e-8), ("SmLs07", 2e-2)],
)
def test_variances_agree_with_the_certified_values_of_nist(name: str, digits: float) -> None:
    certified = NIST[name]
    between, within = launch_components(list(np.array(certified["groups"])))
    r = len(certified["groups"][0])
    assert within == pytest.approx(certified["certified_within_mean_square"], rel=digits)
    # The component between groups is what their mean square holds beyond that within them.
    assert between * r + within == pytest.approx(certified["certified_between_mean_square"], rel=digits)
    assert between * r / within + 1 == pytest.approx(certified["certified_f"], rel=digits)


# github.com/airspeed-velocity/asv 137a1e8945e9, test/test_statistics.py: R's quantile(type=7).
ASV = [
    *(-2.47946614, -1.49595963, -1.02812482, -0.76592323, -0.09452743, 0.10732743),
    *(0.27798342, 0.50173779, 0.57829823, 0.60474948, 0.94695675, 1.20159789),
]


def test_sample_median_agrees_with_r() -> None:
    assert quantiles_or_nan(ASV, (0.5,)) == pytest.approx([0.1926554], abs=1e-6)


def test_early_stopping_needs_what_mlperf_says() -> None:
    # MLPerf LoadGen's early stopping, c = 0.99, d = 0: queries for one slow one at p90, p99, p99.9.
    assert [required_requests(q, 1) for q in (0.9, 0.99, 0.999)] == [64, 662, 6636]


def test_early_stopping_is_the_binomial_bound_for_more_slow_ones_too() -> None:
    for q, slow in ((0.9, 5), (0.99, 17), (0.97, 2)):
        n = required_requests(q, slow)
        assert stats.binom.cdf(slow, n, 1 - q) <= 0.01 < stats.binom.cdf(slow, n - 1, 1 - q)


def test_quantiles_are_bounded_from_the_sample_sizes_of_scipy() -> None:
    assert [needed_for_quantile(q) for q in (0.9, 0.95, 0.99, 0.999)] == [36, 72, 368, 3688]
    for q, n in ((0.9, 36), (0.95, 72), (0.99, 368)):
        # scipy.stats answers the same question with NaN.
        enough, short = (stats.quantile_test(np.arange(m), p=q).confidence_interval() for m in (n, n - 1))
        assert np.isfinite(np.array(enough)).all()
        assert np.isnan(np.array(short)).any()


def test_harrell_davis_agrees_with_scipy() -> None:
    data = np.random.default_rng(1).lognormal(size=60)
    expected = stats.mstats.hdquantiles(data, [0.5, 0.9, 0.99])
    assert [harrell_davis(data, q) for q in (0.5, 0.9, 0.99)] == pytest.approx(expected.data.tolist(), rel=1e-12)


def test_cv_bound_has_the_factors_of_the_chi_square_table() -> None:
    assert [round(cv_upper_bound(1.0, n), 2) for n in (5, 10, 20, 30)] == [2.37, 1.65, 1.37, 1.28]


def test_incomplete_beta_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    for a, b, x in zip(np.exp(rng.uniform(-1, 9, 500)), np.exp(rng.uniform(-1, 9, 500)), rng.random(500), strict=True):
        expected = float(special.betainc(a, b, x))
        assert incomplete_beta(a, b, x) == pytest.approx(expected, rel=1e-9, abs=1e-250)
    assert [incomplete_beta(2, 3, x) for x in (0.0, 1.0)] == [0.0, 1.0]


def test_student_t_agrees_with_scipy() -> None:
    df = np.array([1, 2, 3.7, 9, 30, 1000.5])
    for t in (-40.0, -2.0, 0.0, 0.3, 2.262, 60.0):
        assert t_upper_tail(t, df) == pytest.approx(special.stdtr(df, -t), rel=1e-10)
    for p in (1e-9, 0.025, 0.2, 0.8, 0.975, 0.999999):
        assert t_quantile(p, df) == pytest.approx(special.stdtrit(df, p), rel=1e-10)
    assert t_quantile(0.5, 9) == 0.0


def test_t_quantiles_of_the_printed_tables() -> None:
    # Student's t, two-sided 5 %: any textbook's table.
    assert [round(float(t), 3) for t in t_quantile(0.975, [1, 9, 19, 29])] == [12.706, 2.262, 2.093, 2.045]


def test_pyperf_ratio_and_what_its_pooled_test_overstates() -> None:
    found = _oracle("pyperf_mult_list")
    old, new = (np.array(found[version][0]["launches"]) for version in ("py36", "py37"))
    # pyperf prints: 2.13 us +- 0.06 us -> 2.09 us +- 0.04 us: 1.02x faster.
    assert [round(v.mean() * 1e6, 2) for v in (old, new)] == [2.13, 2.09]
    by_launch = welch(old.mean(axis=1), new.mean(axis=1))
    assert round(float(np.exp(-by_launch.estimate)), 2) == 1.02
    pooled = welch(old.ravel(), new.ravel())
    # Three values of one process are not three witnesses.
    assert abs(by_launch.estimate / by_launch.se) < abs(pooled.estimate / pooled.se)
    assert float(t_two_sided(3.95, 118)) < float(by_launch.p_value())
