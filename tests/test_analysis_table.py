"""What a person sees: `cmp stats` on a terminal of 80 columns, and its other forms."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from enginecmp.cli.stats import command
from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.layout import WIDTH
from enginecmp_analysis.render.needed import MOST_MORE
from enginecmp_analysis.render.sentence import sentence
from enginecmp_analysis.render.table import render, verdict_words

GOLDEN = Path(__file__).parent / "data" / "stats_table.txt"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    engines = ("pytorch_baseline", "llamacpp", "mistralrs")
    write_run(simulate_run(Design(ratio=0.97), engines=engines), tmp_path)
    return tmp_path


def _stats(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_table_is_the_golden_one(results: Path) -> None:
    found = _stats(results, "--details", "--plan", "--slo", "ttft_seconds:p90=0.03", "--slo", "itl_seconds:p99=0.004")
    assert found.exit_code == 0
    assert found.output == GOLDEN.read_text()


@pytest.mark.parametrize(
    "design",
    [
        Design(blocks=1, requests=1),
        Design(blocks=3, missing_launch=True),
        Design(seconds=1e-7, blocks=4),
        Design(seconds=5e5, ratio=1000.0),
        Design(ratio=1e-4, noise="pareto", tail=1.5, requests=100),
        Design(tick_seconds=0.5),
    ],
    ids=["one request", "a launch missing", "tiny", "huge", "heavy tails", "a clock of half a second"],
)
def test_no_line_is_wider_than_a_terminal_and_no_number_is_nan(design: Design) -> None:
    engines = ("a_baseline_whose_name_is_rather_long_for_a_table", "another_engine_with_a_long_name", "e")
    run = simulate_run(design, engines=engines, cells=(Cell(10, 4, 1), Cell(200, 4, 64)), gate="not checked")
    lines = [text for text, _ in render(analyse([run], Options(pairs=True, details=True, quantiles=True)))]
    assert max(len(line) for line in lines) <= WIDTH
    assert not [line for line in lines if "nan" in line.split()]


def test_an_inconclusive_line_starts_with_a_tilde_and_says_what_is_missing() -> None:
    report = analyse([simulate_run(Design(launch_spread=0.05, ratio=1.02))])
    lines = [text for text, _ in render(report)]
    (at,) = [i for i, line in enumerate(lines) if line.startswith("throughput_tokens_per_second")]
    assert lines[at + 1].startswith("~ ")
    assert "more launches needed; this run can show" in " ".join(line.strip() for line in lines[at + 2 : at + 4])


def test_an_incomparable_engine_is_listed_with_a_mark_and_without_a_ratio() -> None:
    lines = [text for text, _ in render(analyse([simulate_run(gate="not comparable")]))]
    assert "  engine  1.0, cpu, not comparable" in lines
    assert any(line.startswith("! engine  ") for line in lines)
    assert not any("×" in line for line in lines)


def test_colour_never_carries_meaning_alone(results: Path) -> None:
    assert "\x1b" not in _stats(results).output


def test_json_csv_and_markdown_say_the_same(results: Path) -> None:
    primary = ("--metric", "throughput_tokens_per_second")
    found = json.loads(_stats(results, "--json", *primary).output)["comparisons"]
    rows = list(csv.DictReader(io.StringIO(_stats(results, "--csv", *primary).output)))
    text = _stats(results, "--markdown", *primary).output
    assert [c["engine"] for c in found] == [row["engine"] for row in rows] == ["llamacpp", "mistralrs"]
    assert [c["ratio"] for c in found] == [float(row["ratio"]) for row in rows]
    for c in found:
        assert f"| {c['engine']} / pytorch_baseline | {c['ratio']:.4g} |" in text


def test_json_has_objectives_plans_and_details_only_where_asked_for(results: Path) -> None:
    plain = json.loads(_stats(results, "--json").output)
    assert {"slos", "plans"}.isdisjoint(plain)
    asked = json.loads(
        _stats(results, "--json", "--plan", "--detect", "5%", "--details", "--slo", "e2e_seconds:p90=1").output
    )
    assert asked["plans"][0]["detect"] == 0.05
    assert [slo["verdict"] for slo in asked["slos"]] == ["pass"] * 3
    assert "sign_flip_p" in asked["comparisons"][0]["details"]


def test_a_narrower_margin_takes_equivalence_back(tmp_path: Path) -> None:
    write_run(simulate_run(Design(blocks=20, requests=30, launch_spread=0.005)), tmp_path)
    primary = ("--metric", "throughput_tokens_per_second")
    verdicts = [
        json.loads(_stats(tmp_path, "--json", "--margin", margin, *primary).output)["comparisons"][0]["verdict"]
        for margin in ("3%", "0.001")
    ]
    assert verdicts == ["equivalent", "inconclusive"]


@pytest.mark.parametrize("share", ["3", "-1%", "0", "many", "150%"])
def test_a_share_that_is_none_is_refused(results: Path, share: str) -> None:
    found = _stats(results, "--margin", share)
    assert found.exit_code == 2
    assert f"expected a share like 3% or 0.03, got '{share}'" in found.output


@pytest.mark.parametrize(("needed", "mde"), [(1412, 0.4), (None, 0.4)])
def test_an_absurd_number_of_launches_is_said_in_words(needed: int | None, mde: float) -> None:
    analysis = analyse([simulate_run(Design(launch_spread=0.1, ratio=1.02))])
    (at,) = [i for i, c in enumerate(analysis.report.comparisons) if c.primary]
    found = msgspec.structs.replace(
        analysis.report.comparisons[at], launches_needed=needed, mde=mde, ci_low=0.9, ci_high=1.042
    )
    analysis.report.comparisons[at] = found
    words = "no realistic number of launches tells them apart on this machine; the difference, if any, is below 10.0 %"
    assert words in verdict_words(found)
    (ranking,) = analysis.report.rankings
    assert sentence(ranking, analysis.report, analysis.contexts[0]).startswith(
        f"engine and baseline cannot be told apart: {words}"
    )
    told = " ".join([verdict_words(found), sentence(ranking, analysis.report, analysis.contexts[0])])
    assert "1412" not in told
    few = msgspec.structs.replace(found, launches_needed=MOST_MORE)
    assert f"{MOST_MORE} more launches needed" in verdict_words(few)
    without = msgspec.structs.replace(found, launches_needed=None, mde=math.nan)
    assert "no spread to plan with" in verdict_words(without)
