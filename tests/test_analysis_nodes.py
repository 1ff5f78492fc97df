"""Runs of several nodes pooled: the node is what is repeated, and a node × engine interaction is told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.calibrate import interaction_found
from enginecmp_analysis.data.levels import Level, levels_of
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, node_of_blocks, simulate_run
from enginecmp_analysis.schema.stats import Comparison, StatsReport

PRIMARY = "throughput_tokens_per_second"


def primary(report: StatsReport) -> Comparison:
    (found,) = [c for c in report.comparisons if c.metric == PRIMARY]
    return found


def run_on(node: object, *, ratio: float = 1.0, speed: float = 1.0, seed: int = 1, blocks: int = 5) -> Run:
    """Return a run of a node whose speed touches both engines."""
    run = simulate_run(Design(ratio=ratio, seconds=0.1 * speed, blocks=blocks), seed=seed, run_id=f"run-{seed}")
    run.manifest.environment = {**run.manifest.environment, **({"node": node} if node else {})}
    return run


def test_blocks_of_one_node_stand_side_by_side() -> None:
    runs = [run_on("a", seed=1), run_on("b", seed=2, blocks=3), run_on("a", seed=3)]
    levels = levels_of(runs)
    assert (levels.noun, levels.names) == ("node", ("a", "b"))
    # One number is left free between runs, for the block -1 of a sweep's calibration.
    assert levels.of_runs == (Level(0, 0), Level(1, 0), Level(0, 6))
    assert levels.of_runs[2].block(0) == (0, 6)


@pytest.mark.parametrize("nodes", [("a", "a"), ("a", None), (None, None), ("a", 3), ("a", "")])
def test_without_several_named_nodes_runs_are_what_is_repeated(nodes: tuple[object, object]) -> None:
    levels = levels_of([run_on(node, seed=seed) for seed, node in enumerate(nodes, start=1)])
    assert (levels.noun, levels.names, levels.of_runs) == ("run", ("run-1", "run-2"), (Level(0), Level(1)))


def test_a_verdict_over_nodes_rests_on_one_mean_a_node() -> None:
    runs = [run_on("abc"[i // 2], ratio=0.8, speed=1 + i // 2, seed=i) for i in range(6)]
    found = primary(analyse(runs).report)
    assert (found.verdict, found.n_launches, found.n_runs) == ("faster", 30, 3)
    logs = [math.log(primary(analyse([run]).report).ratio) for run in runs]
    nodes = [np.mean(logs[i : i + 2]) for i in (0, 2, 4)]
    low, high = stats.t.interval(0.95, 2, np.mean(nodes), stats.sem(nodes))
    assert [found.ratio, found.ci_low, found.ci_high] == pytest.approx(
        [math.exp(np.mean(nodes)), math.exp(low), math.exp(high)], rel=1e-9
    )


def test_nodes_that_differ_in_speed_alone_agree_and_one_on_which_an_engine_differs_is_named() -> None:
    alike = [run_on(node, ratio=0.8, speed=speed, seed=i) for i, (node, speed) in enumerate([("a", 1), ("b", 3)])]
    assert not [w for w in analyse(alike).report.warnings if "disagree" in w]
    report = analyse([*alike, run_on("odd", ratio=1.2, seed=9)]).report
    assert "nodes disagree (p<0.001): the ratio is 0.802 on odd and 1.29 on a" in report.warnings[0]
    assert report.warnings[0].endswith("look at each node by itself")
    (told,) = [w for w in primary(report).warnings if w.startswith("nodes disagree")]
    assert told.endswith("the interval rests on 3 nodes, not on their launches")


def test_a_nodes_name_is_shown_and_never_obeyed() -> None:
    runs = [run_on(f"\x1b[31m{name}", ratio=ratio, seed=i) for i, (name, ratio) in enumerate([("a", 0.8), ("b", 1.2)])]
    assert "\x1b" not in "".join(analyse(runs).report.warnings)


def test_nodes_are_pooled_and_other_machines_are_not() -> None:
    other = run_on("c", seed=3)
    other.manifest.environment["cpu"] = "another"
    analysis = analyse([run_on("a", seed=1), run_on("b", seed=2), other])
    assert [len(group.runs) for group in analysis.groups] == [2, 1]


def test_a_design_shares_its_runs_among_its_nodes() -> None:
    assert node_of_blocks(Design(blocks=12, runs=6, nodes=3)).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_interaction_is_found_as_often_as_theory_promises() -> None:
    alarms, _ = interaction_found(0.0, 600)
    found, promised = interaction_found(0.05, 600)
    assert alarms <= 0.025
    assert promised > 0.8
    assert found == pytest.approx(promised, abs=0.05)


def test_planted_node_effects_raise_no_more_false_alarms_through_the_whole_pipeline() -> None:
    rng = np.random.default_rng(5)
    alarms = covered = 0
    for seed in range(30):
        runs = []
        for node in range(4):
            speed, own = np.exp(0.1 * rng.standard_normal()), np.exp(0.07 * rng.standard_normal())
            runs += [
                run_on(f"n{node}", ratio=own, speed=speed, seed=100 * seed + 2 * node + i, blocks=3) for i in (0, 1)
            ]
        found = primary(analyse(runs).report)
        alarms += found.verdict in ("faster", "slower")
        covered += found.ci_low <= 1 <= found.ci_high
    # One or two expected; a t over launches alarms in most of them.
    assert alarms <= 5
    assert covered >= 25
