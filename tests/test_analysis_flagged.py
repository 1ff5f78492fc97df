"""Where every request of an engine is flagged its figures are shown, marked, and compared with nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import KEPT, MEASURE
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.layout import WIDTH
from enginecmp_analysis.render.table import render

METRIC = "throughput_tokens_per_second"


def spoilt(run: Run, *labels: str, reason: str = "foreign_cpu") -> Run:
    """Return a run with every measured request of some engines left out for a reason."""
    columns = run.columns
    codes = [columns.engines.index(label) for label in labels]
    mine = np.isin(columns.engine, codes) & (columns.phase == MEASURE)
    return replace(
        run, columns=replace(columns, reasons=("", reason), excluded=np.where(mine, 1, KEPT).astype(np.int64))
    )


def screens(run: Run) -> tuple[list[str], list[str]]:
    analysis = analyse([run], Options())
    first, whole = ([text for text, _ in lines] for lines in (first_screen(analysis, "x"), render(analysis)))
    assert all(len(text) <= WIDTH for text in [*first, *whole])
    return first, whole


def test_all_flagged_shows_what_including_them_would_show() -> None:
    run = spoilt(simulate_run(Design(ratio=0.8)), "baseline", "engine")
    report = analyse([run], Options()).report
    told = {(s.engine, s.metric): s.mean for s in report.summaries if s.flagged}
    plain = analyse([run], Options(include_flagged=True)).report
    expected = {(s.engine, s.metric): s.mean for s in plain.summaries if s.cell is not None}
    assert {key: told[key] for key in expected} == expected
    assert {c.metric for c in report.comparisons} == {"load_seconds"}
    [ranking] = report.rankings
    assert [(row.engine, row.rank) for row in ranking.rows] == [("baseline", None), ("engine", None)]
    first, whole = screens(run)
    assert first[0].startswith("Nothing can be compared: every request of baseline and engine is flagged")
    assert sum(text.endswith("all flagged") for text in first) == 2
    assert sum(text.startswith(("! baseline  ", "! engine  ")) for text in whole) >= 2


def test_one_that_is_flagged_throughout_leaves_the_others_as_they_are() -> None:
    run = simulate_run(Design(ratio=0.8), engines=("a", "b", "c"))
    without = analyse([spoilt(run, "c")], Options()).report
    [primary] = [c for c in without.comparisons if c.primary]
    assert (primary.engine, primary.verdict) == ("b", "faster")
    assert {s.engine for s in without.summaries if s.flagged} == {"c"}
    assert {row.engine: row.rank for row in without.rankings[0].rows} == {"b": 1, "a": 2, "c": None}
    assert any(w.startswith("c: nothing was measured: all ") for w in without.warnings)


@pytest.mark.parametrize("reason", ["error", "crash"])
def test_what_failed_has_no_figures(reason: str) -> None:
    report = analyse([spoilt(simulate_run(Design(ratio=0.8)), "engine", reason=reason)], Options()).report
    assert not any(s.flagged for s in report.summaries)
