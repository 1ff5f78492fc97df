"""`cmp report`: the answer first, what is drawn is what was found, and the page needs nothing but itself."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from simulated_load import S, batching_server, run_of, sample

from enginecmp.cli.report import command
from enginecmp.format.files import RESUME
from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.data.simulate import Design, simulate_run, write_run
from enginecmp_analysis.data.telemetry import Telemetry
from enginecmp_analysis.decisions.decide import Questions, decide_more
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_csv, to_json
from enginecmp_analysis.render.first_screen import first_screen
from enginecmp_analysis.render.pictures.answer import command_of
from enginecmp_analysis.render.pictures.components import components
from enginecmp_analysis.render.pictures.grid import growth
from enginecmp_analysis.render.pictures.launches import launches
from enginecmp_analysis.render.pictures.machine import machine
from enginecmp_analysis.render.pictures.page import pictures, to_page
from enginecmp_analysis.render.pictures.picture import COLOURS, SYMBOLS, Picture, metric_title
from enginecmp_analysis.render.pictures.ratios import ratios
from enginecmp_analysis.render.pictures.spread import spread
from enginecmp_analysis.render.pictures.tradeoff import tradeoff

USERS = (1, 4, 16)
STEPS = {"baseline": 0.002, "engine": 0.001, "<b>x</b>": 0.003}
BLOCKS = 10
MARGIN = 0.03


def _rows(
    cells: tuple[Cell, ...] = tuple(Cell(100, 8, users) for users in USERS), blocks: int = BLOCKS
) -> list[Sample]:
    random = np.random.default_rng(0)
    rows = []
    for block in range(blocks):
        for engine, slope in STEPS.items():
            speed = float(np.exp(0.02 * random.standard_normal()))
            for at, cell in enumerate(cells):
                users = cell.concurrency
                served = batching_server(users, 3 * users + 20, 8, step=lambda n, f=speed, s=slope: f * (0.01 + s * n))
                rows += served.samples(block, engine, cell, warmups=users, offset=1000 * block + 50 * at)
    return rows


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    # The gate runs for 60 s before the first launch, on all cores.
    times = np.arange(-60, 12000) * S
    busy = np.where(times < 0, 64.0, 1.0)
    telemetry = Telemetry({"cpu_busy_cores": (times, busy), "gpu0_celsius": (times, np.full(len(times), 60.0))})
    found = analyse([run_of(_rows(), engines=tuple(STEPS), telemetry=telemetry)])
    decide_more(found, Options(), Questions())
    return found


def _views(page: str) -> dict[str, list[dict[str, Any]]]:
    """The views of every picture of a page, by the picture's anchor."""
    found = re.findall(r'<figure id="([^"]+)">.*?<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return {name: json.loads(document) for name, document in found}


def _text(html: str) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def test_every_picture_has_something_to_say(analysis: Analysis) -> None:
    (group,) = analysis.groups
    names = [picture.name for picture in pictures(group, analysis, MARGIN)]
    assert names == ["ratios", "growth-concurrency", "tradeoff", "spread", "launches", "machine"]


def test_ratios_are_those_of_the_report(analysis: Analysis) -> None:
    (context,) = analysis.contexts
    picture = ratios(context, analysis.report.comparisons, MARGIN)
    assert picture is not None
    primary = [c for c in analysis.report.comparisons if c.primary]
    figure = picture.views[0].figure()
    (trace,) = figure.data
    assert list(trace.x) == [c.ratio for c in primary]
    assert np.allclose(np.array(trace.error_x.array) + trace.x, [c.ci_high for c in primary])
    assert np.allclose(np.array(trace.x) - trace.error_x.arrayminus, [c.ci_low for c in primary])
    # Filled where there is a verdict: the fast and the slow one apart from the band.
    assert {c.verdict for c in primary} == {"faster", "slower"}
    assert list(trace.marker.symbol) == [SYMBOLS[list(STEPS).index(c.engine)] for c in primary]
    band = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == pytest.approx((1 / 1.03, 1.03))


def test_an_open_verdict_is_hollow() -> None:
    found = analyse([simulate_run(Design(blocks=3))])
    picture = ratios(found.contexts[0], found.report.comparisons, MARGIN)
    assert picture is not None
    (trace,) = picture.views[0].traces
    assert set(trace.marker.symbol) == {f"{SYMBOLS[1]}-open"}
    assert "withheld" in trace.hovertext[0]


def test_many_ratios_come_in_parts_that_fit_a_sheet() -> None:
    cells = tuple(Cell(prompt, 8, 1) for prompt in range(1, 11))
    found = analyse([simulate_run(engines=("a", "b", "c"), cells=cells)])
    picture = ratios(found.contexts[0], found.report.comparisons, MARGIN)
    assert picture is not None
    parts = [view for view in picture.views if view.label.startswith("throughput")]
    assert [view.label for view in parts] == ["throughput (1 of 2)", "throughput (2 of 2)"]
    assert [len(view.traces[0].x) for view in parts] == [14, 6]


@pytest.mark.parametrize("ratio", [1e-9, 0.3, 0.999, 1.0, 1.02, 2.5, 40.0, 1e15])
def test_an_axis_of_ratios_has_labels(ratio: float) -> None:
    found = analyse([simulate_run(Design(ratio=1.1))])
    for c in found.report.comparisons:
        c.ratio, c.ci_low, c.ci_high = ratio, ratio * 0.99, ratio * 1.01
    picture = ratios(found.contexts[0], found.report.comparisons, MARGIN)
    assert picture is not None
    axis = picture.views[0].figure().layout.xaxis
    low, high = 10 ** axis.range[0], 10 ** axis.range[1]
    assert 1 <= len([tick for tick in axis.tickvals if low <= tick <= high]) <= 5


def test_an_engine_looks_the_same_in_every_picture(analysis: Analysis) -> None:
    looks: dict[str, set[tuple[str, str]]] = {}
    for name, views in _views(to_page(analysis, MARGIN)).items():
        for trace in (trace for view in views for trace in view["data"]):
            marker, label = trace["marker"], trace["name"].partition(" (")[0]
            if name != "s0-ratios" and label in ("baseline", "engine", "&lt;b&gt;x&lt;/b&gt;"):
                looks.setdefault(label, set()).add((marker["color"], marker["symbol"]))
    assert looks == {
        label: {(COLOURS[number], SYMBOLS[number])}
        for number, label in enumerate(("baseline", "engine", "&lt;b&gt;x&lt;/b&gt;"))
    }
    verdicts = re.findall(r"--(?:good|bad): (#\w+)", to_page(analysis, MARGIN))
    assert len(verdicts) == 4
    assert not set(verdicts) & set(COLOURS)


def test_every_view_says_in_its_title_what_it_shows(analysis: Analysis) -> None:
    views = _views(to_page(analysis, MARGIN))
    assert views["s0-ratios"][0]["title"] == "Throughput of each engine relative to baseline (higher is better)"
    assert views["s0-launches"][0]["title"] == "Launch by launch: throughput, 100→8, ×1"
    titles = [view["title"] for found in views.values() for view in found]
    assert len(set(titles)) == len(titles)
    assert {view["title"] for view in views["s0-ratios"]} >= {
        "TTFT of each engine relative to baseline (lower is better)"
    }


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("throughput_tokens_per_second", "throughput"),
        ("ttft_seconds_p90", "TTFT p90"),
        ("peak_rss_above_empty_bytes", "peak RSS above empty"),
        ("requests_per_second", "requests per second"),
        ("kv_bytes_per_token", "KV bytes per token"),
    ],
)
def test_metrics_are_called_by_words(metric: str, title: str) -> None:
    assert metric_title(metric) == title


def test_launches_are_the_means_that_are_compared(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = launches(group)
    assert picture is not None
    assert picture.views[0].label == "throughput, 100→8, ×1"
    drawn = {trace.name: trace for trace in picture.views[0].traces}
    for engine in STEPS:
        means = group.means[engine, Cell(100, 8, 1), "throughput_tokens_per_second"]
        trace = drawn[engine.replace("<", "&lt;").replace(">", "&gt;")]
        assert np.array_equal(trace.y, means.means)
        assert list(trace.x) == list(range(1, BLOCKS + 1))


def test_the_spread_is_a_distribution_of_all_requests(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = spread(group)
    assert picture is not None
    assert picture.views[0].x == "TTFT, ms"
    trace = picture.views[0].traces[0]
    values = group.means["baseline", Cell(100, 8, 1), "ttft_seconds"].values
    assert (np.diff(trace.y) > 0).all()
    assert (trace.x[0], trace.x[-1], trace.y[-1]) == pytest.approx((1000 * values.min(), 1000 * values.max(), 1))
    assert trace.name == f"baseline ({len(values)})"


def test_a_long_distribution_is_thinned_and_keeps_its_ends() -> None:
    found = analyse([simulate_run(Design(blocks=20, requests=200))])
    picture = spread(found.groups[0])
    assert picture is not None
    trace = picture.views[0].traces[0]
    values = np.sort(next(iter(found.groups[0].means.values())).values)
    assert len(trace.x) <= 500 < len(values)
    assert trace.y[0] == 1 / len(values)
    assert trace.y[-1] == 1


def test_growth_runs_over_what_varies(analysis: Analysis) -> None:
    (picture,) = growth(analysis.groups[0], analysis.report.summaries)
    view = picture.views[0]
    assert view.title == "throughput over users (closed loop, 100 prompt tokens, 8 output tokens)"
    assert view.figure().layout.xaxis.type == "log"
    assert [list(trace.x) for trace in view.traces] == [list(USERS)] * len(STEPS)
    means = {(s.engine, s.cell): s for s in analysis.report.summaries if s.metric == "throughput_tokens_per_second"}
    rows = [means["engine", Cell(100, 8, users)] for users in USERS]
    drawn = view.traces[1]
    assert list(drawn.y) == [row.mean for row in rows]
    assert np.allclose(np.array(drawn.y) + drawn.error_y.array, [row.ci_high for row in rows])


def test_growth_has_a_picture_an_axis_and_a_view_for_what_is_held_fixed() -> None:
    cells = tuple(Cell(prompt, 8, users) for prompt in (10, 100) for users in (1, 2, 4))
    found = analyse([run_of(_rows(cells, blocks=2), engines=tuple(STEPS))])
    pictured = growth(found.groups[0], found.report.summaries)
    assert [picture.name for picture in pictured] == ["growth-concurrency", "growth-prompt-tokens"]
    held = [[v.label for v in picture.views if v.label.startswith("throughput")] for picture in pictured]
    assert held[0] == [f"throughput, closed loop, {prompt} prompt tokens, 8 output tokens" for prompt in (10, 100)]
    assert held[1] == [f"throughput, {users}, 8 output tokens" for users in ("1 user", "2 users", "4 users")]


def _joined(picture: Picture) -> dict[str, list[str]]:
    return {view.label: list(view.traces[0].text) for view in picture.views}


def test_the_tradeoff_follows_the_load(analysis: Analysis) -> None:
    picture = tradeoff(analysis.groups[0], analysis.report.summaries)
    assert picture is not None
    trace = picture.views[0].traces[0]
    assert list(trace.text) == ["100→8, ×1", "100→8, ×4", "100→8, ×16"]
    assert (np.diff(trace.x) > 0).all()
    assert (np.diff(trace.y) > 0).all()


def test_no_line_joins_loads_of_different_kinds() -> None:
    cells = (
        *(Cell(50, 8, users) for users in (1, 4)),
        *(Cell(200, 8, users) for users in (1, 4)),
        Cell(50, 16, 4),
        *(Cell(50, 8, 8, "poisson", rate) for rate in (1.0, 2.0)),
        *(Cell(50, 8, 8, "gamma", rate) for rate in (1.0, 2.0)),
        Cell(50, 8, 4, "constant", 1.0),
        Cell(50, 8, 1, variant="leak"),
    )
    found = analyse([run_of(_rows(cells, blocks=2), engines=tuple(STEPS))])
    picture = tradeoff(found.groups[0], found.report.summaries)
    assert picture is not None
    # What has one load only is a point, and no line.
    assert _joined(picture) == {
        "closed loop, 50 prompt tokens, 8 output tokens": ["50→8, ×1", "50→8, ×4"],
        "gamma sweep, 50 prompt tokens, 8 output tokens": ["50→8, gamma 1/s", "50→8, gamma 2/s"],
        "Poisson sweep, 50 prompt tokens, 8 output tokens": ["50→8, Poisson 1/s", "50→8, Poisson 2/s"],
        "closed loop, 200 prompt tokens, 8 output tokens": ["200→8, ×1", "200→8, ×4"],
    }
    for grown in growth(found.groups[0], found.report.summaries):
        for view in grown.views:
            kinds = {re.sub(r"[\d.]+", "n", text) for trace in view.traces for text in trace.text}
            assert len(kinds) == 1, view.title


def test_components_are_drawn_engine_beside_engine() -> None:
    seconds = {"norm": 0.001, "attention": 0.004, "ffn": 0.005}
    cell = Cell(32, 1, 1, variant="prefill")
    rows = [
        sample(block, engine, cell, i, at, at + 0.5, metrics={f"{c}_seconds": f * s for c, s in seconds.items()})
        for block in range(3)
        for e, (engine, f) in enumerate((("baseline", 1.0), ("engine", 2.0)))
        for i in range(4)
        for at in [100 * block + 10 * e + i]
    ]
    found = analyse([run_of(rows, scenario={"kind": "profile", "primary_metric": "e2e_seconds"})])
    picture = components(found.groups[0], found.report.summaries)
    assert picture is not None
    (view,) = picture.views
    first, second = view.traces
    assert list(view.figure().layout.yaxis.ticktext) == ["norm", "attention", "ffn"]
    assert [round(y) for y in first.y] == [round(y) for y in second.y] == [0, 1, 2]
    assert all(a < b for a, b in zip(first.y, second.y, strict=True))
    assert list(first.x) == pytest.approx([1, 4, 5])
    assert list(second.x) == pytest.approx([2, 8, 10])
    assert list(second.text) == ["norm: 10.0 %", "attention: 40.0 %", "ffn: 50.0 %"]
    assert view.x == "time of one pass, ms"
    assert "largest: baseline ffn 50.0 %, engine ffn 50.0 %" in view.title
    assert "components" in [drawn.name for drawn in pictures(found.groups[0], found, MARGIN)]


def test_less_memory_is_not_called_faster() -> None:
    cells = (Cell(100, 8, 1),)
    rows = _rows(cells)
    for row in rows:
        held = 1e8 * (0.5 if row.engine == "engine" else 1) + 1e4 * (row.block * len(row.engine) % 7)
        row.metrics = {"peak_rss_bytes": 1e8 + held}
    for block in range(BLOCKS):
        for engine in STEPS:
            at = 1000 * block - 5
            rows.append(sample(block, engine, cells[0], 0, at, at + 1, phase="load", token_ns=[], output_tokens=0))
            rows[-1].metrics = {"empty_rss_bytes": 1e8}
    found = analyse([run_of(rows, engines=tuple(STEPS), scenario={"primary_metric": "peak_rss_above_empty_bytes"})])
    page = to_page(found, MARGIN)
    title = _views(page)["s0-ratios"][0]["title"]
    assert title == "Peak RSS above empty of each engine relative to baseline (lower is better)"
    answer = _text(page[page.index("<header>") : page.index('id="setup"')])
    assert "engine takes 0.500 × the memory of baseline" in answer
    assert "1 ■ engine 50.0 MB" in answer
    assert "faster" not in answer


def test_bands_are_the_launches_in_their_engines_colour(analysis: Analysis) -> None:
    (group,) = analysis.groups
    picture = machine(group)
    assert picture is not None
    layout = picture.views[0].figure().layout
    assert len(layout.shapes) == BLOCKS * len(STEPS)
    columns = group.runs[0].columns
    first = columns.launch == columns.launches.index("b0-engine")
    zero = columns.start_ns.min()
    ends = ((columns.start_ns[first].min() - zero) / S, (columns.end_ns[first].max() - zero) / S)
    assert any((band.x0, band.x1) == pytest.approx(ends) for band in layout.shapes)
    engines = [name.partition("-")[2] for name in columns.launches]
    assert [band.fillcolor for band in layout.shapes] == [COLOURS[list(STEPS).index(engine)] for engine in engines]
    assert [axis.title.text for axis in (layout.yaxis, layout.yaxis2)] == ["busy cores", "°C"]


def test_the_machine_meanwhile_leaves_the_gate_out(analysis: Analysis) -> None:
    picture = machine(analysis.groups[0])
    assert picture is not None
    (busy,) = (trace for trace in picture.views[0].traces if trace.name == "cpu_busy_cores")
    assert np.nanmin(busy.x) >= 0
    assert np.nanmax(busy.y) == 1.0
    # No line leads from one launch to the next one.
    bands = picture.views[0].figure().layout.shapes
    assert all(any(band.x0 <= x <= band.x1 for band in bands) for x in busy.x)
    assert np.isnan(busy.y).sum() >= BLOCKS


def test_nothing_is_drawn_of_nothing() -> None:
    found = analyse([run_of([], engines=("a", "b"))])
    assert pictures(found.groups[0], found, MARGIN) == []
    assert "Nothing to rank" in to_page(found, MARGIN)


# The page


def test_the_page_begins_with_what_stats_prints_first() -> None:
    found = analyse([simulate_run(Design(ratio=0.5), engines=("baseline", "engine", "other"))])
    page = to_page(found, MARGIN)
    top = _text(page[page.index("<body>") : page.index('id="setup"')])
    screen = " ".join(" ".join(line for line, _ in first_screen(found, "cmp stats")).split())
    sentence = screen[: screen.index(" simulated ·")]
    assert sentence.startswith("engine generates 2") or sentence.startswith("other generates 2")
    assert sentence in top
    for row in found.report.rankings[0].rows:
        assert re.search(rf"{row.rank} \S {row.engine} [\d.,]+ tokens/s ", top)
    # The box comes next, then the contents, then the first picture.
    places = [page.index(mark) for mark in ('class="answer"', 'id="setup"', "<nav", "<figure")]
    assert places == sorted(places)


def test_the_box_names_machine_model_versions_and_the_command(tmp_path: Path) -> None:
    run = simulate_run(Design(blocks=3, requests=4))
    run.manifest.environment |= {"os": "Debian 12", "memory_bytes": 8e9, "libraries": {"torch": "2.15.0"}}
    page = _text(to_page(analyse([run]), MARGIN))
    for told in ("simulated, 2 cores, 8.00 GB memory, no GPU", "Debian 12", "simulated-model, Q8_0", "torch 2.15.0"):
        assert told in page
    assert command_of(run) == (
        "cmp run --engines baseline,engine --scenario simulated --profile quick --model simulated-model "
        "--baseline baseline --blocks 3 --requests 4 --seed 1"
    )
    # What the run itself wrote down is nearer to the truth.
    (tmp_path / RESUME).write_bytes(msgspec.json.encode({"command": "cmp run --model /m.gguf --threads 1"}))
    kept = dataclasses.replace(run, path=tmp_path)
    assert command_of(kept) == "cmp run --model /m.gguf --threads 1 --blocks 3 --requests 4 --seed 1"
    (tmp_path / RESUME).write_text("[1, 2")
    assert command_of(dataclasses.replace(run, path=tmp_path)) == command_of(run)
    run.manifest.scenario["source_tool"] = "vllm"
    assert command_of(run) == "not made by cmp run: results of another tool"


def test_contents_lead_to_every_question_and_every_anchor_is_there(analysis: Analysis) -> None:
    other = run_of(_rows(blocks=2), engines=tuple(STEPS), scenario={"name": "another"})
    both = analyse([analysis.groups[0].runs[0], dataclasses.replace(other, manifest=_renamed(other.manifest))])
    page = to_page(both, MARGIN)
    links = re.findall(r'href="#([^"]+)"', page)
    anchors = re.findall(r'<[a-z]+[^>]* id="([^"]+)"', page)
    assert len(links) >= 10
    assert set(links) <= set(anchors)
    assert len(anchors) == len(set(anchors))
    # Of several scenarios the first question of each is unfolded, the others wait to be asked.
    for number in range(2):
        states = re.findall(rf'<details class="question" id="s{number}-q\d+"( open)?>', page)
        assert states == [" open", *[""] * (len(states) - 1)]
        assert len(states) == 4
        assert f"s{number}-q3" in links
    single = to_page(analysis, MARGIN)
    assert re.findall(r'<details class="question" id="s0-q\d+"( open)?>', single) == [" open"] * 4


def _renamed(manifest: Any) -> Any:
    return msgspec.structs.replace(manifest, run_id="another", seed=2)


def test_data_of_the_page_are_those_of_stats(analysis: Analysis) -> None:
    page = to_page(analysis, MARGIN)
    documents = dict(re.findall(r'<script type="application/json" id="data-(\w+)">(.*?)</script>', page, re.DOTALL))
    assert json.loads(documents["json"]) == json.loads(to_json(analysis.report))
    assert json.loads(documents["csv"]) == to_csv(analysis.report)
    rows = list(csv.DictReader(io.StringIO(json.loads(documents["csv"]))))
    assert {row["engine"] for row in rows} >= {"engine", "<b>x</b>"}
    assert set(re.findall(r'data-from="data-(\w+)"', page)) == set(documents)


def test_numbers_are_sorted_by_value_and_not_by_their_words(analysis: Analysis) -> None:
    page = to_page(analysis, MARGIN)
    tables = re.findall(r'<table class="sortable[^"]*">.*?</table>', page, re.DOTALL)
    assert len(tables) == len(re.findall(r"<table", page)) >= 3
    means = [float(value) for value in re.findall(r'data-sort="([^"]+)"', tables[-1])]
    assert {s.mean for s in analysis.report.summaries} <= set(means)


def test_the_gate_has_a_question_of_its_own(analysis: Analysis) -> None:
    page = to_page(analysis, MARGIN)
    assert 'href="#s0-quality">Does it compute the same thing?' in page
    section = page[page.index('id="s0-quality"') :]
    assert "◆ <b>x</b> equivalent" in _text(section)
    assert "quality" not in "".join(re.findall('href="[^"]*"', to_page(analyse([simulate_run()]), MARGIN)))


def test_the_page_stands_alone(analysis: Analysis) -> None:
    page = to_page(analysis, MARGIN)
    ours = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r'src\s*=|href="(?!#)|url\(|@import', ours)
    assert "default-src 'none'" in ours
    assert "showSendToCloud: false" in page
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
