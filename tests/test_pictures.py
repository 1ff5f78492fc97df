"""`cmp report`: what is drawn is what was found, and the page needs nothing but itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from simulated_load import S, batching_server, run_of

from enginecmp.cli.report import command
from enginecmp.types import Cell, Sample
from enginecmp_analysis.data.telemetry import Telemetry
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.pictures.grid import growth, tradeoff
from enginecmp_analysis.pictures.launches import launches
from enginecmp_analysis.pictures.machine import machine
from enginecmp_analysis.pictures.page import pictures, to_page
from enginecmp_analysis.pictures.ratios import ratios
from enginecmp_analysis.pictures.spread import spread
from enginecmp_analysis.report import Analysis, Options, analyse
from enginecmp_analysis.simulate import Design, simulate_run, write_run

USERS = (1, 4, 16)
STEPS = {"baseline": 0.002, "engine": 0.001, "<b>x</b>": 0.003}
BLOCKS = 10
MARGIN = 0.03


def _rows() -> list[Sample]:
    random = np.random.default_rng(0)
    rows = []
    for block in range(BLOCKS):
        for engine, slope in STEPS.items():
            speed = float(np.exp(0.02 * random.standard_normal()))
            for at, users in enumerate(USERS):
                served = batching_server(users, 3 * users + 20, 8, step=lambda n, f=speed, s=slope: f * (0.01 + s * n))
                cell = Cell(100, 8, users)
                rows += served.samples(block, engine, cell, warmups=users, offset=200 * block + 50 * at)
    return rows


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    times = np.arange(2000) * S
    telemetry = Telemetry({"cpu_busy_cores": (times, np.ones(2000)), "gpu0_celsius": (times, np.full(2000, 60.0))})
    found = analyse([run_of(_rows(), engines=tuple(STEPS), telemetry=telemetry)])
    decide_more(found, Options(), Questions())
    return found


def test_every_picture_has_something_to_say(analysis: Analysis) -> None:
    (group,) = analysis.groups
    names = [picture.name for picture in pictures(group, analysis, MARGIN)]
    assert names == ["ratios", "growth", "tradeoff", "launches", "spread", "machine"]


def test_ratios_are_those_of_the_report(analysis: Analysis) -> None:
    (context,) = analysis.contexts
    picture = ratios(context, analysis.report.comparisons, MARGIN)
    assert picture is not None
    primary = [c for c in analysis.report.comparisons if c.primary]
    first = picture.figure.data[0]
    assert list(first.x) == [c.ratio for c in primary]
    assert np.allclose(np.array(first.error_x.array) + first.x, [c.ci_high for c in primary])
    assert np.allclose(np.array(first.x) - first.error_x.arrayminus, [c.ci_low for c in primary])
    # Filled where there is a verdict: the fast and the slow one apart from the band.
    assert {c.verdict for c in primary} == {"faster", "slower"}
    assert set(first.marker.symbol) == {"circle"}
    band = next(shape for shape in picture.figure.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == pytest.approx((1 / 1.03, 1.03))


def test_an_open_verdict_is_hollow() -> None:
    found = analyse([simulate_run(Design(blocks=3))])
    picture = ratios(found.contexts[0], found.report.comparisons, MARGIN)
    assert picture is not None
    assert set(picture.figure.data[0].marker.symbol) == {"circle-open"}
    assert "withheld" in picture.figure.data[0].hovertext[0]


def test_a_menu_shows_one_view_at_a_time(analysis: Analysis) -> None:
    picture = launches(analysis.groups[0])
    assert picture is not None
    (menu,) = picture.figure.layout.updatemenus
    shown = np.array([button.args[0]["visible"] for button in menu.buttons])
    assert shown.shape[1] == len(picture.figure.data)
    assert (shown.sum(axis=0) == 1).all()
    assert [trace.visible for trace in picture.figure.data] == shown[0].tolist()
    assert menu.buttons[0].label == "throughput_tokens_per_second, 100→8, ×1"


def test_launches_are_the_means_that_are_compared(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = launches(group)
    assert picture is not None
    drawn = {trace.name: trace for trace in picture.figure.data if trace.visible}
    for engine in STEPS:
        means = group.means[engine, Cell(100, 8, 1), "throughput_tokens_per_second"]
        trace = drawn[engine.replace("<", "&lt;").replace(">", "&gt;")]
        assert np.array_equal(trace.y, means.means)
        assert list(trace.x) == list(range(1, BLOCKS + 1))


def test_the_spread_is_a_distribution_of_all_requests(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = spread(group)
    assert picture is not None
    trace = picture.figure.data[0]
    values = group.means["baseline", Cell(100, 8, 1), "ttft_seconds"].values
    assert (np.diff(trace.y) > 0).all()
    assert (trace.x[0], trace.x[-1], trace.y[-1]) == (values.min(), values.max(), 1)
    assert trace.name == f"baseline ({len(values)})"


def test_a_long_distribution_is_thinned_and_keeps_its_ends() -> None:
    found = analyse([simulate_run(Design(blocks=20, requests=200))])
    picture = spread(found.groups[0])
    assert picture is not None
    trace = picture.figure.data[0]
    values = np.sort(next(iter(found.groups[0].means.values())).values)
    assert len(trace.x) <= 500 < len(values)
    assert trace.y[0] == 1 / len(values)
    assert trace.y[-1] == 1


def test_growth_runs_over_what_varies(analysis: Analysis) -> None:
    picture = growth(analysis.groups[0], analysis.report.summaries)
    assert picture is not None
    assert picture.title == "Over users"
    assert picture.figure.layout.xaxis.type == "log"
    assert [list(trace.x) for trace in picture.figure.data if trace.visible] == [list(USERS)] * len(STEPS)
    means = {(s.engine, s.cell): s for s in analysis.report.summaries if s.metric == "throughput_tokens_per_second"}
    rows = [means["engine", Cell(100, 8, users)] for users in USERS]
    drawn = picture.figure.data[1]
    assert list(drawn.y) == [row.mean for row in rows]
    assert np.allclose(np.array(drawn.y) + drawn.error_y.array, [row.ci_high for row in rows])


def test_lines_that_differ_in_more_than_the_axis_are_told_apart() -> None:
    rows = []
    for block in range(2):
        for prompt in (10, 100):
            for users in (1, 2, 4):
                served = batching_server(users, 3 * users + 10, 8)
                rows += served.samples(block, "engine", Cell(prompt, 8, users), warmups=users, offset=100 * block)
    found = analyse([run_of(rows, engines=("engine",))])
    picture = growth(found.groups[0], found.report.summaries)
    assert picture is not None
    names = {trace.name for trace in picture.figure.data}
    assert names == {"engine, 10 prompt tokens, 8 output tokens", "engine, 100 prompt tokens, 8 output tokens"}


def test_the_tradeoff_follows_the_load(analysis: Analysis) -> None:
    picture = tradeoff(analysis.groups[0], analysis.report.summaries)
    assert picture is not None
    trace = picture.figure.data[0]
    assert list(trace.text) == ["100→8, ×1", "100→8, ×4", "100→8, ×16"]
    assert (np.diff(trace.x) > 0).all()
    assert (np.diff(trace.y) > 0).all()


def test_bands_are_the_launches_in_their_engines_colour(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = machine(group)
    assert picture is not None
    bands = picture.figure.layout.shapes
    assert len(bands) == BLOCKS * len(STEPS)
    columns = group.runs[0].columns
    first = columns.launch == columns.launches.index("b0-engine")
    zero = columns.start_ns.min()
    ends = ((columns.start_ns[first].min() - zero) / S, (columns.end_ns[first].max() - zero) / S)
    assert any((band.x0, band.x1) == pytest.approx(ends) for band in bands)
    assert len({band.fillcolor for band in bands}) == len(STEPS)
    assert [axis.title.text for axis in (picture.figure.layout.yaxis, picture.figure.layout.yaxis2)] == [
        "busy cores",
        "°C",
    ]


def test_nothing_is_drawn_of_nothing() -> None:
    found = analyse([run_of([], engines=("a", "b"))])
    assert pictures(found.groups[0], found, MARGIN) == []
    assert "nothing to show" in to_page(found, MARGIN)


def test_the_page_stands_alone(analysis: Analysis) -> None:
    page = to_page(analysis, MARGIN)
    ours = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=|url\(", ours)
    assert "default-src 'none'" in ours
    assert page.count('"showSendToCloud": false') == len(pictures(analysis.groups[0], analysis, MARGIN))
    # A label is text, wherever it stands.
    assert "<b>x</b>" not in ours
    assert "&lt;b&gt;x&lt;/b&gt;" in ours
    assert "faster (Holm p" in ours
    assert page == to_page(analysis, MARGIN)


# The command


def _report(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_the_command_writes_one_file(tmp_path: Path) -> None:
    write_run(simulate_run(Design(blocks=3)), tmp_path / "results")
    output = tmp_path / "page.html"
    output.write_text("old")
    found = _report(tmp_path / "results", "-o", output)
    assert found.exit_code == 0, found.output
    assert "open it in a browser" in found.output
    assert output.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["page.html"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_run(simulate_run(Design(blocks=3)), tmp_path / "results")
    found = _report(tmp_path / "results", "-o", tmp_path / "no" / "page.html")
    assert found.exit_code != 0
    assert str(found.exception).startswith(f"{tmp_path}/no/page.html: cannot be written (No such file or directory)")
