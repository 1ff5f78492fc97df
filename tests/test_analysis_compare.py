"""The comparison of two engines: estimates, intervals, corrections, verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.judge.compare import LogRatio, match, paired, welch
from enginecmp_analysis.judge.power import (
    launches_for,
    launches_needed,
    launches_to_detect,
    minimum_detectable_effect,
)
from enginecmp_analysis.judge.verdict import Evidence, decide
from enginecmp_analysis.statistics.fieller import fieller
from enginecmp_analysis.statistics.multiplicity import benjamini_hochberg, bonferroni_confidence, holm, holm_confidence
from enginecmp_analysis.statistics.permutation import sign_flip_p

positive = st.floats(1e-3, 1e3)
columns = st.integers(3, 12).flatmap(lambda n: st.tuples(*[st.lists(positive, min_size=n, max_size=n)] * 2))


def _means(values: list[float], blocks: list[int] | None = None) -> LaunchMeans:
    ones = np.ones(len(values), np.int64)
    where = blocks if blocks is not None else list(range(len(values)))
    return LaunchMeans([(0, b) for b in where], np.array(values), ones, ones, np.array(values))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_paired_interval_and_p_are_scipys_on_the_logs(rng: np.random.Generator) -> None:
    a, b = rng.lognormal(0, 0.1, 10), rng.lognormal(0.2, 0.1, 10)
    found = paired(a, b)
    expected = stats.ttest_1samp(np.log(b / a), 0)
    low, high = expected.confidence_interval()
    assert float(found.p_value()) == pytest.approx(expected.pvalue, rel=1e-9)
    assert [float(x) for x in found.interval()] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-9)


def test_unpaired_p_is_scipys_welch_on_the_logs(rng: np.random.Generator) -> None:
    a, b = rng.lognormal(0, 0.1, 10), rng.lognormal(0.1, 0.4, 7)
    found = welch(a, b)
    expected = stats.ttest_ind(np.log(b), np.log(a), equal_var=False)
    assert float(found.p_value()) == pytest.approx(expected.pvalue, rel=1e-9)
    assert float(found.df) == pytest.approx(expected.df, rel=1e-12)


def test_equivalence_p_is_the_larger_of_two_one_sided_tests(rng: np.random.Generator) -> None:
    a, b = rng.lognormal(0, 0.01, 10), rng.lognormal(0.01, 0.01, 10)
    d, limit = np.log(b / a), math.log(1.03)
    expected = max(
        stats.ttest_1samp(d, -limit, alternative="greater").pvalue,
        stats.ttest_1samp(d, limit, alternative="less").pvalue,
    )
    assert float(paired(a, b).equivalence_p(0.03)) == pytest.approx(expected, rel=1e-9)


@given(columns)
def test_swapping_engines_inverts_ratio_and_limits(pair: tuple[list[float], list[float]]) -> None:
    there, back = paired(*pair), paired(*reversed(pair))
    assert float(back.estimate) == pytest.approx(-float(there.estimate), abs=1e-12)
    assert float(back.p_value()) == pytest.approx(float(there.p_value()), rel=1e-6, abs=1e-12, nan_ok=True)
    low, high = (float(x) for x in there.interval())
    assert [float(x) for x in back.interval()] == pytest.approx([1 / high, 1 / low], rel=1e-6, nan_ok=True)


@given(columns, st.floats(1e-6, 1e6))
def test_rescaling_units_changes_nothing(pair: tuple[list[float], list[float]], scale: float) -> None:
    a, b = (np.array(values) for values in pair)
    before, after = paired(a, b), paired(a * scale, b * scale)
    assert float(after.estimate) == pytest.approx(float(before.estimate), abs=1e-9)
    assert float(after.se) == pytest.approx(float(before.se), rel=1e-6, abs=1e-9)


@given(columns, st.randoms())
def test_order_of_blocks_is_irrelevant(pair: tuple[list[float], list[float]], random: object) -> None:
    blocks = list(range(len(pair[0])))
    random.shuffle(blocks)  # type: ignore[attr-defined]
    shuffled = match(
        _means([pair[0][b] for b in blocks], blocks),
        _means([pair[1][b] for b in reversed(blocks)], blocks[::-1]),
    ).log_ratio()
    straight = match(_means(pair[0]), _means(pair[1])).log_ratio()
    assert float(shuffled.estimate) == pytest.approx(float(straight.estimate), abs=1e-12)
    assert float(shuffled.se) == pytest.approx(float(straight.se), rel=1e-9, abs=1e-12)


def test_no_spread_gives_a_ratio_but_no_interval_and_no_p() -> None:
    found = paired([1.0] * 10, [2.0] * 10)
    assert float(np.exp(found.estimate)) == 2.0
    assert np.isnan([*found.interval(), found.p_value(), found.equivalence_p(0.03)]).all()
    assert math.isnan(minimum_detectable_effect(found))
    assert launches_needed(found, 0.03) is None


def test_one_launch_gives_a_ratio_and_nothing_else() -> None:
    found = paired([1.0], [2.0])
    assert float(np.exp(found.estimate)) == 2.0
    assert math.isnan(float(found.p_value()))


def test_launches_are_paired_by_block_and_the_lonely_one_is_left_out() -> None:
    found = match(_means([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5]), _means([50, 40, 30, 20, 10], [4, 3, 2, 1, 0]))
    assert found.paired
    assert found.baseline.tolist() == [1, 2, 3, 4, 5]
    assert found.engine.tolist() == [10, 20, 30, 40, 50]
    assert found.left_out == 1


def test_engines_that_share_no_blocks_are_compared_unpaired() -> None:
    found = match(_means([1, 2, 3], [0, 1, 2]), _means([1, 2, 3], [7, 8, 9]))
    assert not found.paired
    assert found.log_ratio().method == "welch"


def test_holm_of_a_textbook_family() -> None:
    # Holm 1979 by hand: 4 x .005, 3 x .01, then monotone: 2 x .03, and .04 is lifted to it.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_hochberg_is_scipys_and_holm_leaves_gaps_alone() -> None:
    p = [0.001, 0.2, 0.03, 0.04, 0.9]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert holm([0.04, math.nan]).tolist() == pytest.approx([0.04, math.nan], nan_ok=True)
    assert benjamini_hochberg([math.nan]).tolist() == pytest.approx([math.nan], nan_ok=True)
    assert holm([]).tolist() == []


def test_intervals_at_holms_steps_share_the_error_as_the_steps_do() -> None:
    # 5 % / 4, / 3, / 2; .031 after .03 is held to 2 x .03, whose share of its own p is 5 % x .031 / .06.
    found = holm_confidence([0.01, 0.031, 0.03, 0.005], 0.95)
    assert found.tolist() == pytest.approx([1 - 0.05 / 3, 1 - 0.05 * 0.031 / 0.06, 0.975, 0.9875])
    assert holm_confidence([0.0, math.nan, 0.0], 0.95).tolist() == pytest.approx([0.975, 0.975, 0.95])
    assert holm_confidence([], 0.95).tolist() == []


def test_simultaneous_intervals_share_the_error_between_them() -> None:
    assert bonferroni_confidence(0.95, 5) == pytest.approx(0.99)
    assert bonferroni_confidence(0.95, 0) == pytest.approx(0.95)


def test_sign_flips_are_scipys_permutation_test(rng: np.random.Generator) -> None:
    d = rng.normal(0.5, 1, 9)
    expected = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=1000)
    assert sign_flip_p(d) == pytest.approx(expected.pvalue)


def test_sign_flips_cannot_go_below_two_patterns() -> None:
    assert sign_flip_p([1.0, 1.1, 0.9, 1.0, 1.2]) == 2 / 2**5
    assert sign_flip_p(np.full(30, 1.0)) == pytest.approx(1e-5, rel=0.01)
    assert math.isnan(sign_flip_p([]))


def test_fieller_holds_the_ratio_and_agrees_with_logs_where_spreads_are_small(rng: np.random.Generator) -> None:
    a, b = rng.normal(1, 0.01, 10), rng.normal(1.1, 0.01, 10)
    ratio, low, high = fieller(a, b)
    assert low < ratio < high
    assert [float(x) for x in paired(a, b).interval()] == pytest.approx([float(low), float(high)], rel=1e-3)


def test_fieller_has_no_limits_when_the_baseline_is_not_clear_of_zero() -> None:
    _, low, high = fieller([1.0, -1.0, 0.5], [1.0, 2.0, 3.0])
    assert np.isnan([low, high]).all()


def test_fieller_uses_the_covariance_of_blocks(rng: np.random.Generator) -> None:
    block = rng.normal(1, 0.2, 10)
    a, b = block + rng.normal(0, 0.01, 10), block + rng.normal(0, 0.01, 10)
    _, low, high = fieller(a, b)
    _, wide_low, wide_high = fieller(a, b, paired=False)
    assert high - low < (wide_high - wide_low) / 5


@pytest.mark.parametrize(("n", "effect"), [(5, 4.1), (10, 2.7), (20, 1.8), (30, 1.5)])
def test_minimum_detectable_effect_of_two_percent_spread(n: int, effect: float) -> None:
    # Unpaired launches that spread by 2 % each; the tail of the t with 2n - 2 degrees of freedom.
    found = LogRatio(np.array(0.0), np.array(0.02 * math.sqrt(2 / n)), np.array(2 * n - 2.0), n, "welch")
    assert round(100 * minimum_detectable_effect(found), 1) == effect


def test_launches_needed_reach_the_power_they_promise() -> None:
    n = launches_to_detect(0.05, 0.03)
    delta = math.log(1.03) * math.sqrt(n) / 0.05
    power = 1 - stats.nct.cdf(stats.t.ppf(0.975, n - 1), n - 1, delta)
    assert power == pytest.approx(0.8, abs=0.02)


def test_fewest_launches_are_needed_far_from_the_margin() -> None:
    near, inside, outside = (launches_for(0.02, math.log(r), 0.03) for r in (1.016, 1.0, 1.10))
    assert near is not None
    assert inside is not None
    assert outside is not None
    assert near > inside > outside


def _evidence(**changes: object) -> Evidence:
    values: dict[str, object] = {
        "log_ratio": 0.1,
        "ci_low": 1.05,
        "ci_high": 1.15,
        "p_adjusted": 0.001,
        "equivalence_p_adjusted": 1.0,
        "higher_is_better": True,
        "full_launches": 10,
    }
    return Evidence(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "faster"),
        ({"higher_is_better": False}, "slower"),
        ({"log_ratio": -0.1, "ci_low": 0.85, "ci_high": 0.95}, "slower"),
        ({"log_ratio": -0.1, "ci_low": 0.85, "ci_high": 0.95, "higher_is_better": False}, "faster"),
        ({"full_launches": 9}, "withheld"),
        ({"p_adjusted": 0.06}, "inconclusive"),
        ({"ci_low": 0.99}, "inconclusive"),
        ({"p_adjusted": 0.6, "ci_low": 0.99, "ci_high": 1.01, "equivalence_p_adjusted": 0.01}, "equivalent"),
        (
            {"p_adjusted": math.nan, "ci_low": math.nan, "ci_high": math.nan, "equivalence_p_adjusted": math.nan},
            "inconclusive",
        ),
    ],
)
def test_verdicts(changes: dict[str, object], verdict: str) -> None:
    assert decide(_evidence(**changes)) == verdict
