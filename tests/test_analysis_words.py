"""What is said where there is no verdict, no ratio or no number: the reason, and not another one."""

from __future__ import annotations

import csv
import io
import re

import pytest
from decision_runs import request, run_of

from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_csv, to_markdown
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.table import render

ENGINES = ("baseline", "engine")


def screen(run: Run) -> str:
    """Return the first screen in one line."""
    return " ".join(" ".join(text for text, _ in first_screen(analyse([run]), "cmp stats results/")).split())


def table(run: Run, options: Options | None = None) -> str:
    """Return the whole table in one line."""
    return " ".join(" ".join(text for text, _ in render(analyse([run], options))).split())


def with_goodput(slow: tuple[str, ...]) -> Run:
    """Return ten launches of ten requests each, of which those of the slow engines break the limit."""
    rows = []
    for number, engine in enumerate(ENGINES):
        for block in range(10):
            for index in range(10):
                spent = (2.0 if engine in slow else 0.5) + 0.001 * ((block * 7 + number) % 10)
                start = 5.0 * index
                rows.append(request(start, start + spent, start + 0.1, engine=engine, block=block, index=index))
    limits = {"e2e_seconds": 1.0}
    return run_of(rows, engines=ENGINES, primary_metric="goodput_requests_per_second", goodput=limits)


def test_engines_that_keep_no_limit_are_not_said_to_have_measured_nothing() -> None:
    run = with_goodput(ENGINES)
    assert screen(run).startswith("No engine kept the limits with any request.")
    told = table(run)
    assert "no request kept the limits (baseline in 10 of 10 launches, engine in 10 of 10 launches)" in told
    assert "nothing was there to measure" not in told
    assert "no ratio" in told


def test_one_engine_without_goodput_is_named() -> None:
    told = screen(with_goodput(("engine",)))
    assert told.startswith("engine and baseline have no ratio: engine kept the limits with no request.")


def test_a_metric_that_runs_do_not_hold_is_named_and_those_that_they_do() -> None:
    told = table(simulate_run(), Options(metrics=("queue_seconds", "joules_per_token")))
    assert told.startswith("nothing to show: these runs hold no queue_seconds and no joules_per_token; they hold ttft")
    assert "ended well" not in told


def test_counted_flags_are_the_reason_why_verdicts_are_withheld() -> None:
    told = table(simulate_run(), Options(include_flagged=True))
    assert "verdict withheld: flagged requests are counted" in told
    assert "it takes 10 launches" not in told
    (found,) = [c for c in analyse([simulate_run()], Options(include_flagged=True)).report.comparisons if c.primary]
    assert (found.verdict, found.launches_needed, found.requests_needed) == ("withheld", 0, 0)


def test_what_an_engine_said_of_its_errors_stands_beside_their_number() -> None:
    rows = [request(3 * i, 3 * i + 1, 3 * i + 0.5, index=i) for i in range(4)]
    rows[2].status, rows[2].error = "error", "baseline: does not offer matmul by itself with naive\x1b[31m"
    rows[2].token_ns, rows[2].output_tokens = [], 0
    (told,) = [w for w in analyse([run_of(rows)]).report.warnings if "left out" in w]
    assert told == (
        "baseline: 1 of 4 measured requests left out: error 1 (does not offer matmul by itself with naive\\x1b[31m)"
    )


@pytest.mark.parametrize(
    ("seconds", "ratio", "told"),
    [
        # Alike: one unit, in the heading.
        (0.1, 0.5, ("e2e_seconds (exploratory; lower is better; shown in ms)", "baseline 99.", "engine 49.")),
        # Far apart: a unit each.
        (0.38, 1e-5, ("e2e_seconds (exploratory; lower is better)", "baseline 37", " ms [", "engine 3.7", " µs [")),
    ],
)
def test_times_have_three_digits_and_a_unit_that_fits(seconds: float, ratio: float, told: tuple[str, ...]) -> None:
    shown = table(simulate_run(Design(seconds=seconds, ratio=ratio, blocks=12, launch_spread=0.005)))
    for text in told:
        assert text in shown, (text, shown)
    # The value itself; a ratio of a hundred-thousandth has an exponent.
    assert not re.search(r"e-0\d \[", shown)


def test_markdown_begins_with_the_sentence_of_the_first_screen() -> None:
    analysis = analyse([simulate_run(Design(ratio=0.8))])
    first = first_screen(analysis, "cmp stats results/")
    sentence = " ".join(text for text, _ in first[: [text for text, _ in first].index("")])
    lines = to_markdown(analysis).splitlines()
    assert lines[0] == f"**{sentence}**"
    assert any(line.startswith("| 1 | engine | 2") and line.endswith(" | – | equivalent | first |") for line in lines)


def test_csv_has_the_means_of_both_engines_and_of_an_engine_alone() -> None:
    report = analyse([simulate_run(Design(ratio=0.8), cells=(Cell(10, 8), Cell(20, 8)))]).report
    means = {(s.engine, s.cell.prompt_tokens if s.cell else "", s.metric): s.mean for s in report.summaries}
    for row in csv.DictReader(io.StringIO(to_csv(report))):
        at = int(row["prompt_tokens"]) if row["prompt_tokens"] else ""
        assert float(row["engine_mean"]) == means["engine", at, row["metric"]]
        assert float(row["baseline_mean"]) == means["baseline", at, row["metric"]]
    alone = analyse([simulate_run(engines=("only",))]).report
    rows = list(csv.DictReader(io.StringIO(to_csv(alone))))
    assert [(row["engine"], row["metric"], float(row["engine_mean"]), row["ratio"]) for row in rows] == [
        (s.engine, s.metric, s.mean, "") for s in alone.summaries
    ]
