"""Who is first, and who shares a rank."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.judge.ranking import rank_cell
from enginecmp_analysis.render.ranking_rows import behind_word, ranking_rows
from enginecmp_analysis.schema.stats import Ranked, Ranking
from enginecmp_analysis.statistics.letters import compact_letters

CELL = Cell(50, 16, 1)


def letters_of(n: int, *pairs: tuple[int, int]) -> list[str]:
    """Return the letters of n things of which these pairs differ."""
    differ = [[(i, j) in pairs or (j, i) in pairs for j in range(n)] for i in range(n)]
    return compact_letters(differ)


def test_nothing_has_no_letters() -> None:
    assert compact_letters([]) == []


def test_things_that_all_differ_have_a_letter_each() -> None:
    assert letters_of(3, (0, 1), (0, 2), (1, 2)) == ["a", "b", "c"]


def test_things_of_which_none_differ_share_one() -> None:
    assert letters_of(4) == ["a", "a", "a", "a"]


def test_the_one_in_between_carries_both_letters() -> None:
    assert letters_of(3, (0, 2)) == ["a", "ab", "b"]


@pytest.mark.parametrize("seed", range(20))
def test_two_share_a_letter_exactly_when_they_were_not_shown_to_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 9))
    pairs = tuple(pair for pair in combinations(range(n), 2) if rng.random() < 0.5)
    found = letters_of(n, *pairs)
    for i, j in combinations(range(n), 2):
        assert bool(set(found[i]) & set(found[j])) == ((i, j) not in pairs)


def ranking(
    ratio: float = 1.0, engines: tuple[str, ...] = ("a", "b", "c"), blocks: int = 10, **options: object
) -> Ranking:
    """Rank a simulated run in which every engine takes `ratio` times the seconds of the first one."""
    run = simulate_run(Design(blocks=blocks, ratio=ratio, launch_spread=0.01), engines=("a", "b", "c"))
    (group,) = analyse([run]).groups
    found = rank_cell(CELL, group.context, group.means, Options())
    assert found is not None
    return found


def test_engines_that_cannot_be_told_apart_share_the_rank_behind_the_best() -> None:
    found = ranking(1.2)
    assert (found.rows[0].engine, found.rows[0].rank) == ("a", 1)
    assert {row.engine: row.rank for row in found.rows[1:]} == {"b": 2, "c": 2}
    assert [row.letters for row in found.rows] == ["a", "b", "b"]
    assert found.decided
    assert found.transitive


def test_nothing_between_equal_engines() -> None:
    assert [row.rank for row in ranking(1.0).rows] == [1, 1, 1]


def test_with_nine_launches_nobody_has_a_rank() -> None:
    found = ranking(1.2, blocks=9)
    assert not found.decided
    assert [row.rank for row in found.rows] == [None, None, None]


def test_the_ratio_to_the_best_is_the_t_interval_of_paired_logs_at_the_step_of_holms_method() -> None:
    run = simulate_run(Design(ratio=1.2, launch_spread=0.01), engines=("a", "b", "c"))
    (group,) = analyse([run]).groups
    found = rank_cell(CELL, group.context, group.means, Options())
    assert found is not None
    means = {name: group.means[name, CELL, found.metric].means for name in "abc"}
    assert math.isnan(found.rows[0].ratio_to_best)
    p = {pair: ttest_1samp(np.log(means[pair[1]]) - np.log(means[pair[0]]), 0.0).pvalue for pair in ("ab", "ac", "bc")}
    # Both pairs with the best differ by far, b and c do not: tested at 5 % / 3 and 5 % / 2.
    steps = {pair: 3 - at for at, pair in enumerate(sorted(p, key=lambda pair: p[pair]))}
    for row in found.rows[1:]:
        logs = np.log(means[row.engine]) - np.log(means["a"])
        low, high = ttest_1samp(logs, 0.0).confidence_interval(1 - 0.05 / steps[f"a{row.engine}"])
        assert row.ratio_to_best == pytest.approx(math.exp(logs.mean()), rel=1e-12)
        assert (row.ci_low, row.ci_high) == pytest.approx((math.exp(low), math.exp(high)), rel=1e-9)
        assert row.mean == pytest.approx(means[row.engine].mean(), rel=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.03, 1.04])
def test_an_interval_leaves_out_one_exactly_where_the_row_says_that_engines_differ(ratio: float) -> None:
    words = set()
    for seed in range(12):
        run = simulate_run(Design(ratio=ratio, launch_spread=0.02), seed=seed, engines=("a", "b", "c", "d"))
        (group,) = analyse([run]).groups
        found = rank_cell(CELL, group.context, group.means, Options())
        assert found is not None
        best, *others = found.rows
        shown = ranking_rows(found, group.context)[1][1:]
        for row, told in zip(others, shown, strict=True):
            apart = row.ci_low > 1 or row.ci_high < 1
            assert apart == (not set(row.letters) & set(best.letters))
            limits = [float(limit) for limit in told.ratio.partition("[")[2].rstrip("]").split(", ")]
            assert (told.word in ("slower", "faster")) == (limits[0] > 1 or limits[1] < 1), told
            words.add(told.word)
    assert words >= ({"tied"} if ratio == 1.0 else {"tied", "slower"})


def test_beaten_by_another_than_the_first_is_open() -> None:
    rows = [
        Ranked(engine=name, rank=rank, letters=letters, mean=mean, ratio_to_best=mean / 9, ci_low=low, ci_high=high,
               n_launches=10)
        for name, rank, letters, mean, low, high in (
            ("a", 1, "ab", 9.0, math.nan, math.nan),
            ("b", 1, "a", 8.9, 0.9, 1.08),
            ("c", 2, "b", 8.1, 0.8, 1.02),
            ("d", 3, "c", 7.0, 0.7, 0.9),
        )
    ]  # fmt: skip
    assert [behind_word(row, "throughput_tokens_per_second") for row in rows[2:]] == ["open", "slower"]
