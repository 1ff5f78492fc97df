"""Claims held against data whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import CommandLine

from enginecmp.format.records import Cell
from enginecmp.scenarios.loader import load_scenario
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.decisions.expect import expectations
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.schema.decisions import ExpectationRow

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


# --- targets from a file ---------------------------------------------------------------------------------------------

TARGETS = """
[[expect]]
engine = "engine"
metric = "e2e_seconds"
high = 0.04
source = "our service"
[[expect]]
engine = "engine"
metric = "ratio"
low = 1.5
[[expect]]
engine = "engine"
metric = "gpu_busy_share"
low = 0.7
[[expect]]
engine = "engine"
metric = "e2e_seconds"
high = 1.0
scenario = "other"
"""


def test_targets_of_a_file_are_held_against_existing_runs_with_the_conditions(cmp: CommandLine, tmp_path: Path) -> None:
    run = simulate_run(TWICE, run_id="one")
    run.manifest.environment |= {"cpu": "Some CPU", "commit": "abc123", "libraries": {"enginecmp": "9.9"}}
    write_run(run, tmp_path)
    (tmp_path / "targets.toml").write_text(TARGETS)
    done = cmp("stats", "one", "--expect", "targets.toml", "--json")
    assert done.returncode == 3, done.stderr
    rows = json.loads(done.stdout)["expectations"]
    assert [row["status"] for row in rows] == ["refuted", "holds", "not measured", "not measured"]
    assert all(row["asked"] for row in rows)
    assert rows[3]["reason"] == "no run of the scenario other is among these"
    assert (
        rows[0]["measured"]
        == f"{run.manifest.created_utc[:10]}; engine 1.0 (cpu); enginecmp 9.9; commit abc123; Some CPU"
    )
    shown = cmp("stats", "one", "--expect", "targets.toml", "--markdown")
    assert "| engine | cell | target | actual [95 % CI] | status | source | measured |" in shown.stdout
    assert "**refuted**" in shown.stdout


def test_what_is_open_or_holds_exits_with_0(cmp: CommandLine, tmp_path: Path) -> None:
    write_run(simulate_run(TWICE, run_id="one"), tmp_path)
    (tmp_path / "targets.toml").write_text(TARGETS.replace("0.04", "0.0501"))
    done = cmp("stats", "one", "--expect", "targets.toml")
    assert done.returncode == 0, done.stderr
    assert "  measured: " in done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected at least one [[expect]] table"),
        ('[[expect]]\nengine = "a"\nmetric = "ttft_second"\nlow = 1', "did you mean 'ttft_seconds'"),
        ('[[expect]]\nengine = "a"\nmetric = "ratio"', "low, high or both"),
        ('[[expect]]\nengin = "a"\nmetric = "ratio"', "did you mean 'engine'"),
        ("expect = 3", "expected claims as [[expect]] tables, got 3"),
        ("a = ", "targets.toml"),
    ],
)
def test_a_wrong_file_of_targets_is_a_usage_error(text: str, told: str, cmp: CommandLine, tmp_path: Path) -> None:
    write_run(simulate_run(TWICE, run_id="one"), tmp_path)
    (tmp_path / "targets.toml").write_text(text)
    done = cmp("stats", "one", "--expect", "targets.toml")
    assert (done.returncode, told in done.stderr) == (2, True), done.stderr
