"""The rule of a race: planted winners are found, equal candidates rarely beat the default, losers stop early."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from enginecmp.format.records import Cell
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.judge.race import Race, scores_of

Scores = dict[str, dict[int, float]]


def run(
    rng: np.random.Generator, effects: list[float], blocks: int = 20, spread: float = 0.02, level: float = 0.03
) -> tuple[Race, Scores]:
    """Race candidates whose log scores differ by `effects`, launches by `spread` and blocks by `level`."""
    labels = [f"c{number}" for number in range(len(effects))]
    race, scores = Race(labels), {label: {} for label in labels}
    for block in range(blocks):
        common = rng.normal(0, level)
        for label, effect in zip(labels, effects, strict=True):
            if label in race.alive:
                scores[label][block] = math.exp(common + effect + rng.normal(0, spread))
        race.look(scores)
        if race.ended:
            break
    return race, scores


@pytest.mark.parametrize("candidates", [2, 6])
def test_of_equal_candidates_the_default_loses_no_more_often_than_promised(candidates: int) -> None:
    rng = np.random.default_rng(5)
    repetitions = 200
    winners = Counter(
        race.winner(scores) for race, scores in (run(rng, [0.0] * candidates) for _ in range(repetitions))
    )
    # 5 % are allowed; 17 of 200 or more would have a chance of about 2 % then.
    assert repetitions - winners["c0"] < stats.binom.ppf(0.98, repetitions, 0.05)


def test_looking_after_every_block_without_paying_for_it_would_break_that_promise() -> None:
    # The control: the same data judged at 5 % a look.
    d = np.random.default_rng(5).normal(0, 0.02 * math.sqrt(2), (300, 20))
    looks = [stats.ttest_1samp(d[:, :n], 0, axis=1, alternative="greater").pvalue < 0.05 for n in range(3, 21)]
    assert np.mean(np.any(looks, axis=0)) > 0.12


def test_a_planted_winner_is_found_and_losers_stop_early() -> None:
    rng = np.random.default_rng(6)
    found, launches = Counter[str](), []
    for _ in range(100):
        race, scores = run(rng, [0.0, 0.10, -0.3, -0.3, -0.3])
        found[race.winner(scores)] += 1
        launches.append(sum(len(scores[label]) for label in ("c2", "c3", "c4")) / 3)
        assert race.ended == "one is left"
    assert found["c1"] >= 98
    assert np.mean(launches) < 5  # of 20


def test_candidates_shown_to_be_equivalent_end_the_race_and_the_default_wins() -> None:
    race, scores = run(np.random.default_rng(7), [0.0, 0.001, -0.001], spread=0.002)
    assert race.ended == "those left differ by less than 3%"
    assert race.winner(scores) == "c0"
    assert len(scores["c0"]) < 12


def test_without_the_default_the_simplest_of_equivalent_candidates_wins() -> None:
    race, scores = run(np.random.default_rng(8), [-0.5, 0.001, 0.002], spread=0.003)
    assert set(race.dropped) == {"c0"}
    assert race.ended.startswith("those left")
    assert race.winner(scores) == "c1"  # the later one scored as well or better


def test_when_time_is_over_the_default_wins_unless_it_was_beaten() -> None:
    rng = np.random.default_rng(9)
    race, scores = run(rng, [0.0, 0.02], blocks=4)
    assert not race.ended
    race.stop("its time is over")
    assert race.winner(scores) == "c0"
    race, scores = run(rng, [0.0, 0.5, 0.51], blocks=4)
    race.stop("its time is over")
    assert "c0" in race.dropped
    assert race.winner(scores) in ("c1", "c2")


def test_nobody_is_dropped_before_three_blocks() -> None:
    race, _ = run(np.random.default_rng(10), [0.0, 9.0], blocks=2)
    assert race.dropped == {}


def test_launches_without_any_spread_are_judged_by_sign() -> None:
    race = Race(["a", "b", "c"])
    race.look({"a": dict.fromkeys(range(3), 1.0), "b": dict.fromkeys(range(3), 2.0), "c": dict.fromkeys(range(3), 2.0)})
    assert race.alive == ["b", "c"]
    assert race.winner({"b": {0: 2.0}, "c": {0: 2.0}}) == "b"


def test_an_excluded_candidate_is_no_opponent_and_blocks_that_miss_one_do_not_count() -> None:
    race = Race(["a", "b", "c"])
    race.exclude("c", "fails")
    race.look({"a": {0: 1.0, 1: 1.1, 2: 1.0}, "b": {0: 2.0, 2: 2.1}})
    assert race.dropped == {"c": "fails"}  # two common blocks tell nothing
    race.exclude("b", "fails too")
    assert race.ended == "one is left"


def test_the_level_of_a_look_is_the_one_in_the_text() -> None:
    # Two candidates, first look: alpha / (1 * 1 * 2) = 2.5 %, second: alpha / (2 * 3) = 0.83 %.
    def judged(p: float, looks: int) -> bool:
        d = np.array([-1.0, 0.0, 1.0])
        d += stats.t.isf(p, 2) * stats.sem(d)
        race = Race(["a", "b"])
        race._looks = looks
        race.look({"a": dict.fromkeys(range(3), 1.0), "b": dict(enumerate(np.exp(d)))})
        return "a" in race.dropped

    assert (judged(0.024, 0), judged(0.026, 0)) == (True, False)
    assert (judged(0.0082, 1), judged(0.0085, 1)) == (True, False)


def test_standings_are_ratios_to_the_first_with_limits_of_the_paired_t() -> None:
    scores = {"a": {0: 1.0, 1: 2.0, 2: 1.5}, "b": {0: 1.1, 1: 2.3, 2: 1.7}}
    _, standing = Race(["a", "b"]).standings(scores)
    d = np.log([1.1, 1.15, 1.7 / 1.5])
    low, high = stats.t.interval(0.95, 2, loc=d.mean(), scale=stats.sem(d))
    assert (standing.n, standing.ratio) == (3, pytest.approx(math.exp(d.mean())))
    assert (standing.ci_low, standing.ci_high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))
    assert standing.better_p == pytest.approx(stats.ttest_1samp(d, 0, alternative="greater").pvalue)


def test_scores_join_cells_turn_costs_around_and_leave_torn_blocks_out() -> None:
    def launches(*means: float) -> LaunchMeans:
        blocks = [(0, number) for number in range(len(means))]
        ones = np.ones(len(means), dtype=np.int64)
        return LaunchMeans(blocks, np.array(means), ones, ones, np.array(means))

    small, large = Cell(8, 4), Cell(64, 4)
    means = {
        ("e", small, "ttft_seconds"): launches(0.1, 0.2, 0.3),
        ("e", large, "ttft_seconds"): launches(0.4, 0.2),
        ("f", small, "ttft_seconds"): launches(0.1),
        ("e", small, "decode_tokens_per_second"): launches(7.0),
    }
    found = scores_of(means, "ttft_seconds")
    assert found["e"] == {0: pytest.approx(1 / 0.2), 1: pytest.approx(1 / 0.2)}
    assert found["f"] == {}
    assert scores_of(means, "decode_tokens_per_second") == {"e": {0: pytest.approx(7.0)}}
