"""Quality beside speed, dominated engines, and the sections of the table that a decision rests on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from enginecmp.cli.stats import command
from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.decisions.pareto import pareto
from enginecmp_analysis.decisions.prices import Prices, read_prices
from enginecmp_analysis.decisions.quality import Worse, difference
from enginecmp_analysis.decisions.slo import parse_objectives
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.decision_table import decision_lines, pareto_lines, quality_lines
from enginecmp_analysis.render.layout import WIDTH
from enginecmp_analysis.render.table import asked_for, render

GOLDEN = Path(__file__).parent / "data" / "stats_decisions.txt"
CELL = Cell(50, 16)


def _with_quality(run: Run, **nats: tuple[float, float, float]) -> Run:
    """Give engines a difference to the reference on the timed file, with its limits, and an F32 entry without one."""
    for entry in run.manifest.equivalence:
        entry.quantization = "Q8_0"
        if entry.engine in nats:
            entry.perplexity, entry.reference_perplexity = 12.5, 12.3
            entry.nll_difference, entry.nll_difference_low, entry.nll_difference_high = nats[entry.engine]
            entry.greedy_agreement_tokens = 17
    return run


def _decided(run: Run, questions: Questions | None = None) -> Analysis:
    analysis = analyse([run])
    decide_more(analysis, Options(), questions or Questions())
    return analysis


def _quality_warnings(run: Run) -> list[str]:
    return [w for c in _decided(run).report.comparisons for w in c.warnings if "ΔNLL" in w]


def test_speed_bought_with_quality_is_told_once_beside_the_verdict() -> None:
    found = _quality_warnings(_with_quality(simulate_run(Design(ratio=0.8)), engine=(0.12, 0.05, 0.19)))
    # exp(0.12) is 1.1275.
    assert found == ["faster at ΔNLL +0.12 nats/token [+0.05, +0.19] against baseline: perplexity × 1.127"]


@pytest.mark.parametrize(
    ("ratio", "nats"),
    [
        (0.8, {"engine": (0.12, -0.01, 0.25)}),
        (1.3, {"engine": (0.12, 0.05, 0.19)}),
        (0.8, {"engine": (0.12, 0.05, 0.19), "baseline": (0.11, 0.04, 0.18)}),
        (0.8, {}),
    ],
    ids=["not significant", "slower", "no worse than the baseline", "not measured"],
)
def test_no_word_of_quality_where_nothing_was_bought(ratio: float, nats: dict[str, tuple[float, float, float]]) -> None:
    assert _quality_warnings(_with_quality(simulate_run(Design(ratio=ratio)), **nats)) == []


def test_two_engines_differ_by_the_difference_of_their_differences() -> None:
    # Standard errors of 0.03 and 0.04 make one of 0.05.
    found = difference(
        Worse(0.5, 0.5 - 0.03 * 1.96, 0.5 + 0.03 * 1.96), Worse(0.2, 0.2 - 0.04 * 1.96, 0.2 + 0.04 * 1.96)
    )
    assert found == pytest.approx((0.3, 0.3 - 0.05 * 1.96, 0.3 + 0.05 * 1.96))


def test_entries_of_older_runs_are_still_printed() -> None:
    analysis = _decided(simulate_run())
    lines = [text for text, _ in quality_lines(analysis.report.quality or [], analysis.contexts[0])]
    assert lines == [
        "quality on the bundled text, against the reference",
        "            mean KL   top-1",
        "  baseline  0.0e+00  100.0%",
        "  engine    0.0e+00  100.0%",
    ]


def test_a_gate_that_was_skipped_has_no_quality() -> None:
    run = simulate_run()
    for entry in run.manifest.equivalence:
        entry.mean_kl = entry.top1 = entry.max_kl = None
    assert "quality" not in json.loads(_json(run))


def _json(run: Run) -> str:
    from enginecmp_analysis.render.export import to_json

    return to_json(_decided(run).report)


def _memory(analysis: Analysis, **bytes_of: float) -> Analysis:
    blocks, one = [(0, block) for block in range(10)], np.ones(10, np.int64)
    for engine, size in bytes_of.items():
        values = np.full(10, size)
        analysis.groups[0].means[engine, CELL, "peak_rss_above_empty_bytes"] = LaunchMeans(
            blocks, values, one, one, values
        )
    return analysis


def _pareto(analysis: Analysis, prices: Prices | None = None) -> dict[str, str | None]:
    return {row.engine: row.dominated_by for row in pareto(analysis.groups[0], Options(), prices)}


def test_a_faster_and_smaller_engine_dominates() -> None:
    analysis = _memory(analyse([simulate_run(Design(ratio=0.8))]), baseline=2e9, engine=1e9)
    (row,) = [row for row in pareto(analysis.groups[0], Options(), None) if row.dominated_by]
    assert (row.engine, row.dominated_by) == ("baseline", "engine")
    assert row.objectives == row.better_in == ["throughput_tokens_per_second", "peak_rss_above_empty_bytes"]
    assert row.p_adjusted is not None
    assert row.p_adjusted < 0.001


@pytest.mark.parametrize("objective", ["memory", "quality", "cost"])
def test_nobody_is_dominated_who_is_better_in_one_thing(objective: str) -> None:
    run = simulate_run(Design(ratio=0.8))
    if objective == "quality":
        _with_quality(run, engine=(0.12, 0.10, 0.14), baseline=(0.0, -0.02, 0.02))
    analysis = analyse([run])
    if objective == "memory":
        _memory(analysis, baseline=1e9, engine=1.2e9)
    prices = Prices("", per_hour={"baseline": 1.0, "engine": 2.0}) if objective == "cost" else None
    assert _pareto(analysis, prices) == {"baseline": None, "engine": None}


def test_a_difference_inside_the_margin_is_no_defence() -> None:
    # Two per cent more memory are not worse by more than three.
    analysis = _memory(analyse([simulate_run(Design(ratio=0.8))]), baseline=1e9, engine=1.02e9)
    assert _pareto(analysis) == {"baseline": "engine", "engine": None}


def test_one_kind_of_objective_or_few_launches_weigh_nothing() -> None:
    run = simulate_run(Design(ratio=0.8))
    assert (
        pareto(analyse([run]).groups[0], Options(), None)
        == pareto(
            _memory(analyse([simulate_run(Design(ratio=0.8, blocks=9))]), baseline=2e9, engine=1e9).groups[0],
            Options(),
            None,
        )
        == []
    )


def test_equal_engines_are_seldom_called_dominated() -> None:
    wrong = 0
    for seed in range(60):
        run = simulate_run(Design(requests=10), seed=seed, engines=("baseline", "a", "b"))
        found = _pareto(_memory(analyse([run]), baseline=1e9, a=1e9, b=1e9))
        wrong += any(found.values())
    # 5 % of 60, give or take three standard errors.
    assert wrong <= 8


def test_an_engine_that_computes_something_else_is_not_weighed() -> None:
    assert (
        pareto(_memory(analyse([simulate_run(gate="not comparable")]), baseline=1.0).groups[0], Options(), None) == []
    )


def _golden_run() -> Run:
    run = _with_quality(
        simulate_run(Design(ratio=0.9, blocks=12, requests=20), engines=("pytorch_baseline", "llamacpp", "mistralrs")),
        pytorch_baseline=(0.0, 0.0, 0.0),
        llamacpp=(0.1205, 0.1, 0.141),
        mistralrs=(-0.001, -0.004, 0.002),
    )
    run.manifest.scenario["expect"] = [
        {"engine": "llamacpp", "metric": "throughput_tokens_per_second", "low": 300, "source": "a vendor, RTX 4090"},
        {"engine": "llamacpp", "metric": "ratio", "low": 1.05, "high": 1.2},
        {"engine": "mistralrs", "metric": "ttft_seconds", "high": 0.018},
        {"engine": "candle", "metric": "ratio", "low": 6},
    ]
    return run


def test_who_is_dominated_stands_among_all_numbers_and_not_below_the_first_screen() -> None:
    analysis = _decided(_golden_run(), Questions())
    assert not any("proven dominated" in text for text, _ in asked_for(analysis.report))
    assert any("proven dominated" in text for text, _ in render(analysis))


def test_the_sections_are_the_golden_ones() -> None:
    prices = read_prices("EUR 2.49/h")
    questions = Questions(parse_objectives("ttft_p95<30ms"), prices, demand_per_second=25.0, budget_per_hour=8.0)
    analysis = _decided(_golden_run(), questions)
    report = analysis.report
    lines = [
        *quality_lines(report.quality or [], analysis.contexts[0]),
        *pareto_lines(report.pareto or []),
        *decision_lines(report),
    ]
    assert max(len(text) for text, _ in lines) <= WIDTH
    assert "".join(f"{text}\n" for text, _ in lines) == GOLDEN.read_text()


def _stats(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_run(_golden_run(), tmp_path)
    return tmp_path


def test_the_command_answers_in_every_form(results: Path) -> None:
    options = ("--price", "EUR 2.49/h", "--slo", "ttft_p95<30ms,tpot_p95<9ms", "--demand", "25/s", "--budget", "8/h")
    found = json.loads(_stats(results, *options, "--json").output)
    assert found["capacity"]["slo"] == ["p95 ttft_seconds <= 0.03", "p95 tpot_seconds <= 0.009"]
    assert {row["engine"]: row["machines_high"] for row in found["capacity"]["rows"]} == {
        "pytorch_baseline": 3,
        "llamacpp": 3,
        "mistralrs": 3,
    }
    assert [row["status"] for row in found["expectations"]] == ["refuted", "holds", "open", "not measured"]
    assert {row["metric"] for row in found["money"]["rows"]} >= {"cost_per_million_output_tokens"}
    assert [row["dominated_by"] for row in found["pareto"]] == ["mistralrs", "mistralrs", None]
    table, markdown = _stats(results, "--all", *options).output, _stats(results, *options, "--markdown").output
    for text in (
        "quality on the bundled text",
        "status, target, actual",
        "money in EUR",
        "machines: SLO p95 ttft_seconds",
    ):
        assert text in table
    for text in ("**quality**", "**targets**", "**money**", "**machines for p95 ttft_seconds <= 0.03, p95 tpot"):
        assert text in markdown


def test_nothing_is_asked_nothing_is_added(results: Path) -> None:
    found = json.loads(_stats(results, "--json").output)
    assert {"money", "capacity", "slos"}.isdisjoint(found)
    assert {"quality", "expectations"} <= set(found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--demand", "12/s"], "--demand: expected --slo beside it"),
        (["--budget", "12/h", "--price", "1/h"], "--budget: expected --slo beside it"),
        (["--budget", "12/h", "--slo", "ttft_p95<30ms"], "--budget: expected the price of a machine beside it"),
        (
            ["--budget", "USD 9/h", "--slo", "ttft_p95<30ms", "--price", "EUR 1/h"],
            "expected the currency of the price, 'EUR'",
        ),
        (["--price", "cheap"], "--price: expected an amount per hour like 2.49/h"),
        (["--slo", "ttft<30ms"], "expected an SLO objective like ttft_p95<200ms"),
    ],
)
def test_options_that_do_not_fit_are_refused(results: Path, options: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        _stats(results, *options)


def test_engines_are_described_as_default_or_tuned_and_by_their_batching() -> None:
    run = simulate_run(cells=(Cell(50, 16, 4),))
    run.manifest.engines[0].options = {"tuned": "default", "batching": "queue"}
    run.manifest.engines[1].options = {"tuned": "tuned", "batching": "continuous"}
    assert analyse([run]).contexts[0].engines == {
        "baseline": "1.0, cpu, default, queue, first in first out, reference",
        "engine": "1.0, cpu, tuned, continuous batching, equivalent",
    }
    alone = simulate_run()
    alone.manifest.engines[1].options = {"tuned": "tuned", "batching": "continuous"}
    assert analyse([alone]).contexts[0].engines["engine"] == "1.0, cpu, tuned, equivalent"
