"""Several runs pooled: the run is what is repeated, whatever its launches say among themselves."""

from __future__ import annotations

import dataclasses
import math

import msgspec
import numpy as np
import pytest
from scipy import stats

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.table import verdict_words
from enginecmp_analysis.schema.stats import Comparison, StatsReport
from enginecmp_analysis.statistics.variance import group_means, same_level_p

PRIMARY = "throughput_tokens_per_second"


def primary(report: StatsReport) -> Comparison:
    """Return the one comparison on the primary metric."""
    (found,) = [c for c in report.comparisons if c.metric == PRIMARY]
    return found


def runs_with(ratios: list[float], *, seed: int = 1, blocks: int = 10) -> list[Run]:
    """Return a run for each true ratio of request times."""
    return [
        simulate_run(Design(ratio=ratio, blocks=blocks), seed=100 * seed + i, run_id=f"run-{i}")
        for i, ratio in enumerate(ratios)
    ]


def test_the_f_test_of_runs_is_scipys() -> None:
    rng = np.random.default_rng(1)
    for sizes in ([10] * 7, [3, 10, 1], [2, 2]):
        groups = np.repeat(np.arange(len(sizes)), sizes)
        values = rng.standard_normal(len(groups)) + 0.5 * groups
        parts = [values[groups == g] for g in range(len(sizes))]
        assert same_level_p(values, groups) == pytest.approx(float(stats.f_oneway(*parts).pvalue), rel=1e-9)
    assert math.isnan(same_level_p([1.0, 2.0], [0, 0]))
    assert math.isnan(same_level_p([1.0, 2.0], [0, 1]))
    assert math.isnan(same_level_p([1.0, 1.0, 2.0, 2.0], [0, 0, 1, 1]))
    assert group_means([[1.0, 3.0, 5.0]], [4, 2, 4]).tolist() == [[3.0, 3.0]]


def test_a_jump_inside_seven_runs_is_told_and_decides_nothing() -> None:
    analysis = analyse(runs_with([1.0] * 4 + [0.75] * 3))
    found = primary(analysis.report)
    assert (found.verdict, found.n_launches, found.n_runs) == ("inconclusive", 70, 7)
    assert found.ci_low < 1 < found.ci_high
    (told,) = [w for w in found.warnings if w.startswith("runs disagree (p<0.001): the ratio is ")]
    assert told.endswith("; the interval rests on 7 runs, not on their launches")
    assert "runs disagree" in analysis.report.warnings[0]
    # What is missing are runs, in the words of the sentence and of the table.
    assert found.launches_needed == 0
    assert found.runs_needed
    assert f"{found.runs_needed} more runs needed" in verdict_words(found)
    text = " ".join(line for line, _ in first_screen(analysis, "cmp stats results/"))
    assert f"{found.runs_needed} more runs may tell" in text


def test_runs_that_agree_give_a_verdict_that_rests_on_runs() -> None:
    runs = runs_with([0.8] * 4)
    found = primary(analyse(runs).report)
    assert (found.verdict, found.n_launches, found.n_runs) == ("faster", 40, 4)
    assert not [w for w in found.warnings if "disagree" in w]
    assert "n=40+40 launches of 4 runs" in verdict_words(found)
    # By hand: the mean log ratio of each run, and a t with 3 degrees of freedom.
    logs = [math.log(primary(analyse([run]).report).ratio) for run in runs]
    low, high = stats.t.interval(0.95, 3, np.mean(logs), stats.sem(logs))
    assert [found.ratio, found.ci_low, found.ci_high] == pytest.approx(
        [math.exp(np.mean(logs)), math.exp(low), math.exp(high)], rel=1e-9
    )


def test_runs_count_the_same_whatever_number_of_launches_they_have() -> None:
    runs = [*runs_with([1.0, 1.1], blocks=10), simulate_run(Design(ratio=0.9, blocks=3), seed=9, run_id="short")]
    found = primary(analyse(runs).report)
    logs = [math.log(primary(analyse([run]).report).ratio) for run in runs]
    assert found.ratio == pytest.approx(math.exp(np.mean(logs)), rel=1e-9)
    assert (found.n_launches, found.n_runs) == (23, 3)


def test_means_of_one_engine_rest_on_runs_too() -> None:
    report = analyse(runs_with([1.0] * 4 + [0.75] * 3)).report
    (engine,) = [s for s in report.summaries if (s.engine, s.metric) == ("engine", PRIMARY)]
    # 160 and 213 tokens/s: an interval over 70 launches would be +-6.
    assert engine.ci_low < 160
    assert engine.ci_high > 208
    (ranking,) = report.rankings
    assert [row.rank for row in ranking.rows] == [1, 1]


def test_engines_of_a_run_each_are_unpaired_over_launches_and_over_runs_where_both_have_several() -> None:
    def alone(run: Run, engine: str) -> Run:
        keep = run.columns.engines.index(engine)
        columns = dataclasses.replace(run.columns, phase=np.where(run.columns.engine == keep, run.columns.phase, 1))
        return dataclasses.replace(run, columns=columns)

    base, other = (
        [alone(run, engine) for run in runs_with([0.8] * 2, seed=seed)]
        for seed, engine in ((1, "baseline"), (2, "engine"))
    )
    other = [
        dataclasses.replace(run, manifest=msgspec.structs.replace(run.manifest, run_id=f"other-{i}"))
        for i, run in enumerate(other)
    ]
    once = primary(analyse([base[0], other[0]]).report)
    assert (once.n_launches, once.n_runs) == (10, msgspec.UNSET)
    twice = primary(analyse([*base, *other]).report)
    assert (twice.n_launches, twice.n_runs) == (20, 2)


def test_planted_run_effects_raise_no_more_false_alarms_through_the_whole_pipeline() -> None:
    rng = np.random.default_rng(5)
    alarms = covered = 0
    for seed in range(60):
        effects = np.exp(0.1 * rng.standard_normal(4))
        found = primary(analyse(runs_with(effects.tolist(), seed=seed, blocks=5)).report)
        alarms += found.verdict in ("faster", "slower")
        covered += found.ci_low <= 1 <= found.ci_high
    # Three expected; a t over all 20 launches would alarm in more than a third.
    assert alarms <= 8
    assert covered >= 52
