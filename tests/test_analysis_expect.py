"""Claims held against data whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enginecmp.scenarios.loader import load_scenario
from enginecmp.types import Cell
from enginecmp_analysis.decisions.expect import expectations
from enginecmp_analysis.decisions.schema import ExpectationRow
from enginecmp_analysis.metrics import METRICS
from enginecmp_analysis.report import Options, analyse
from enginecmp_analysis.simulate import Design, simulate_run

EXAMPLES = sorted((Path(__file__).parent.parent / "docs" / "examples").glob("expect-*.toml"))

# The engine takes half of the baseline's tenth of a second, give or take a hundredth of that.
TWICE = Design(ratio=0.5, launch_spread=0.01, requests=40)


def _claim(design: Design = TWICE, cells: tuple[Cell, ...] = (Cell(50, 16),), **claim: object) -> list[ExpectationRow]:
    run = simulate_run(design, cells=cells)
    run.manifest.scenario["expect"] = [{"engine": "engine", **claim}]
    (group,) = analyse([run]).groups
    return expectations(group)


@pytest.mark.parametrize(
    ("low", "high", "status"),
    [
        (0.04, 0.06, "holds"),
        (None, 0.06, "holds"),
        (0.04, None, "holds"),
        (0.06, 0.08, "refuted"),
        (None, 0.04, "refuted"),
        (0.05, None, "open"),
    ],
)
def test_an_interval_inside_outside_or_across_the_claim(low: float | None, high: float | None, status: str) -> None:
    (row,) = _claim(metric="e2e_seconds", low=low, high=high)
    assert row.status == status
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < 0.05 < row.ci_high


def test_what_is_refuted_says_by_how_much_at_least() -> None:
    (below,) = _claim(metric="e2e_seconds", low=0.1)
    (above,) = _claim(metric="e2e_seconds", high=0.02)
    assert below.ci_high is not None
    assert below.off_by == pytest.approx(1 - below.ci_high / 0.1)
    assert above.ci_low is not None
    assert above.off_by == pytest.approx(above.ci_low / 0.02 - 1)
    assert 0.48 < below.off_by < 0.5
    assert 1.4 < above.off_by < 1.5


@pytest.mark.parametrize("primary", ["e2e_seconds", "throughput_tokens_per_second"])
def test_a_ratio_is_a_speed_up_whichever_way_the_metric_is_good(primary: str) -> None:
    run = simulate_run(TWICE)
    run.manifest.scenario |= {
        "primary_metric": primary,
        "expect": [{"engine": "engine", "metric": "ratio", "low": 1.8, "high": 2.2}],
    }
    (row,) = expectations(analyse([run]).groups[0])
    assert row.status == "holds"
    assert row.actual == pytest.approx(2, rel=0.02)
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < 2 < row.ci_high


def test_fewer_than_ten_full_launches_leave_a_claim_open() -> None:
    for design in (Design(ratio=0.5, blocks=9), Design(ratio=0.5, requests=9)):
        (row,) = _claim(design, metric="e2e_seconds", low=0.5)
        assert row.status == "open"
        assert "it takes 10 launches of enough requests" in row.reason
    # A load is one value a launch, so one is enough.
    (row,) = _claim(Design(requests=2), metric="load_seconds", high=2.0)
    assert row.status == "holds"


def test_flagged_requests_refute_nothing() -> None:
    run = simulate_run(TWICE)
    run.manifest.scenario["expect"] = [{"engine": "engine", "metric": "e2e_seconds", "low": 1.0}]
    (group,) = analyse([run]).groups
    assert [row.status for row in expectations(group)] == ["refuted"]
    (row,) = expectations(group, include_flagged=True)
    assert (row.status, row.reason) == ("open", "flagged requests are counted")


def test_a_claim_picks_its_cells() -> None:
    cells = (Cell(10, 4), Cell(50, 4))
    assert [row.cell for row in _claim(cells=cells, metric="ttft_seconds", high=1.0)] == list(cells)
    (row,) = _claim(cells=cells, metric="ttft_seconds", high=1.0, cell={"prompt_tokens": 50})
    assert row.cell == cells[1]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"engine": "candle", "metric": "ttft_seconds"}, "no engine 'candle' in this run"),
        ({"metric": "ttft_second"}, "unknown metric 'ttft_second'; did you mean 'ttft_seconds'?"),
        ({"metric": "joules_per_token"}, "this run does not have it"),
        ({"metric": "ttft_seconds", "cell": {"prompt_tokens": 512}}, "no cell with prompt_tokens = 512 has it"),
    ],
)
def test_what_was_not_measured_says_why(claim: dict[str, Any], reason: str) -> None:
    (row,) = _claim(high=1.0, **claim)
    assert (row.status, row.actual, row.reason) == ("not measured", None, reason)


def test_a_claim_that_is_true_is_seldom_refuted() -> None:
    refuted = 0
    for seed in range(120):
        run = simulate_run(Design(launch_spread=0.05, requests=10), seed=seed)
        run.manifest.scenario["expect"] = [{"engine": "engine", "metric": "ratio", "low": 1.0, "high": 1.0}]
        (row,) = expectations(analyse([run], Options(metrics=("e2e_seconds",))).groups[0])
        refuted += row.status == "refuted"
    # 5 % of 120, give or take three standard errors.
    assert refuted <= 13


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load_and_claim_what_can_be_measured(path: Path) -> None:
    for profile in ("full", "quick"):
        scenario = load_scenario(str(path), profile)
        assert scenario.blocks >= 10
        assert scenario.blocks * scenario.requests >= 100
        assert [claim.metric for claim in scenario.expect if claim.metric not in {*METRICS, "ratio"}] == []
        assert all(claim.source for claim in scenario.expect)
