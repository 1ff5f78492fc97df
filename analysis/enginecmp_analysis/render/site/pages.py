"""The pages of a site: an index of runs and the leaderboards, HTML files that need no server and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from string import Template

from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.judge.leaderboard import Leaderboard, Table, model_and_scenario
from enginecmp_analysis.render.escape import for_html
from enginecmp_analysis.render.layout import show_count
from enginecmp_analysis.render.pictures.answer import machine_name, ranking_tables
from enginecmp_analysis.render.pictures.elements import Cell, linked, table
from enginecmp_analysis.render.pictures.page import asset
from enginecmp_analysis.render.ranking_rows import leader
from enginecmp_analysis.schema.site import SiteRun

INDEX, BOARDS, INDEX_DATA, BOARDS_DATA, PLOTLY = (
    *("index.html", "leaderboards.html", "runs.json", "leaderboards.json", "plotly.js"),
)
"""Files of a site beside its folder `runs`."""

MOST_RUNS = 5
"""Runs of a table that are named at once; the others are folded."""


def site_run(analysis: Analysis, folder: str, names: Sequence[str]) -> SiteRun:
    """Return a run's row.

    Args:
        analysis: of the run alone.
        folder: its folder below `runs`.
        names: of its data files there.
    """
    (group,) = analysis.groups
    (run,) = group.runs
    model, scenario = model_and_scenario(run.manifest)
    return SiteRun(
        run_id=run.manifest.run_id,
        folder=folder,
        created_utc=run.manifest.created_utc,
        status=run.manifest.status,
        scenario=scenario,
        model=model,
        machine=machine_name(run.manifest.environment),
        engines=[engine.name for engine in run.manifest.engines],
        first=leader(analysis.report.rankings),
        files=list(names),
    )


def index_page(runs: Sequence[SiteRun], notes: Sequence[str], nonce: str) -> str:
    """Return the index: one row a run, the latest first.

    Args:
        runs: all of them.
        notes: what was left out, one sentence each.
        nonce: what marks the script that may run.
    """
    heads = ("date", "run", "scenario", "model", "machine", "engines", "first", "status", "data")
    latest = sorted(runs, key=lambda run: (run.created_utc, run.run_id), reverse=True)
    rows = list(table(heads, map(_run_cells, latest), "runs"))
    # One table row a run, in the order of `latest`, between the head and the end.
    marked = [*rows[:3], *(_marked(row, run) for row, run in zip(rows[3:-1], latest, strict=True)), rows[-1]]
    body = [
        f"<header><h1>{show_count(len(runs), 'run')}</h1>",
        f"<p>{linked([('leaderboards', BOARDS), ('this table as JSON', INDEX_DATA)])}</p></header>",
        *_filters(runs, dates=True),
        *marked,
        *_notes(notes),
    ]
    return _page("enginecmp: runs", body, nonce)


def boards_page(boards: Sequence[Leaderboard], runs: Sequence[SiteRun], nonce: str) -> str:
    """Return the leaderboards: one section for every model, machine and scenario.

    Args:
        boards: all of them.
        runs: those of the index.
        nonce: what marks the script that may run.
    """
    folders = {run.run_id: run.folder for run in runs}
    body = [
        f"<header><h1>{show_count(len(boards), 'leaderboard')}</h1>",
        f"<p>{linked([('all runs', INDEX), ('these as JSON', BOARDS_DATA)])}</p>",
        '<p class="quiet">All pairs of engines on the primary metric, corrected (Holm, 5 %); engines that were not '
        "told apart share a rank or a letter. Runs are pooled where model, machine, scenario and builds are the same; "
        "tables of one leaderboard are not compared with each other.</p></header>",
        *_filters(runs, dates=False),
    ]
    for number, board in enumerate(boards):
        body += _board(number, board, folders)
    return _page("enginecmp: leaderboards", body, nonce)


def _page(title: str, body: Sequence[str], nonce: str) -> str:
    ours = {name: files(__package__).joinpath(f"site.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    return Template(ours["html"]).substitute(
        title=for_html(title),
        nonce=nonce,
        style=asset("page.css") + ours["css"],
        body="\n".join(body),
        script=asset("sortable.js") + ours["js"],
    )


def _filters(runs: Sequence[SiteRun], *, dates: bool) -> Iterator[str]:
    """Yield what narrows a page down; hidden until the script that obeys it runs."""
    yield '<form class="box filters" hidden>'
    choices = {
        "scenario": {run.scenario for run in runs},
        "model": {run.model for run in runs},
        "machine": {run.machine for run in runs},
        "engine": {engine for run in runs for engine in run.engines},
    }
    for name, values in choices.items():
        options = "".join(f"<option>{for_html(value)}</option>" for value in sorted(values))
        yield f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>'
    if dates:
        yield '<label>from <input type="date" name="from"></label><label>to <input type="date" name="to"></label>'
    yield '<label>words <input type="search" name="words" placeholder="all of these"></label>'
    yield '<button type="reset">Clear</button> <output aria-live="polite"></output></form>'


def _attributes(scenario: str, model: str, machine: str, engines: Sequence[str], date: str = "") -> str:
    """Return what a filter reads of a row or section; engines on lines of their own."""
    told = {"scenario": scenario, "model": model, "machine": machine, "date": date}
    # A label is shown as it was escaped, in the choices as here, so that both hold the same characters.
    lines = "&#10;".join(map(for_html, engines))
    return "".join(f' data-{name}="{for_html(value)}"' for name, value in told.items()) + f' data-engines="{lines}"'


def _marked(row: str, run: SiteRun) -> str:
    date = run.created_utc[:10]
    return f"<tr{_attributes(run.scenario, run.model, run.machine, run.engines, date)}{row.removeprefix('<tr')}"


def _run_cells(run: SiteRun) -> tuple[Cell, ...]:
    address = f"runs/{run.folder}"
    return (
        f'<span class="date">{for_html(run.created_utc[:16].replace("T", " "))}</span>',
        linked([(run.run_id, f"{address}/report.html")]),
        for_html(run.scenario),
        for_html(run.model),
        for_html(run.machine),
        for_html(", ".join(run.engines)),
        for_html(run.first),
        for_html(run.status),
        linked([(name.partition(".")[0], f"{address}/{name}") for name in run.files]),
    )


def _board(number: int, board: Leaderboard, folders: dict[str, str]) -> Iterator[str]:
    engines = list(dict.fromkeys(label for found in board.tables for label in found.context.engines))
    attributes = _attributes(board.scenario, board.model, board.machine, engines)
    yield f'<section class="scenario board" id="b{number}"{attributes}>'
    yield f"<h2>{for_html(board.scenario)}: {for_html(board.model)}</h2>"
    yield f'<p class="quiet">{for_html(board.machine)}</p>'
    first, *others = board.tables
    yield from _table(first, folders)
    if others:
        yield f"<details><summary>{show_count(len(others), 'more table')}: other builds or settings</summary>"
        for other in others:
            yield from _table(other, folders)
        yield "</details>"
    yield "</section>"


def _table(found: Table, folders: dict[str, str]) -> Iterator[str]:
    dates = [manifest.created_utc[:10] for manifest in found.manifests]
    span = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    pooled = f"{show_count(len(found.manifests), 'run')}, {show_count(found.context.blocks, 'block')}"
    yield f"<h3>{for_html(f'{pooled}, {span}')}</h3>"
    if found.rankings:
        yield f'<p class="answer">First: {for_html(leader(found.rankings))}</p>'
        yield from ranking_tables(found.rankings, found.context)
    else:
        yield '<p class="answer">No engine has a value of the primary metric here.</p>'
    builds = [f"{label}: {text}" for label, text in found.context.engines.items()]
    notes = [*([found.apart] if found.apart else []), *found.context.warnings, *builds]
    yield f'<ul class="notes">{"".join(f"<li>{for_html(note)}</li>" for note in notes)}</ul>'
    links = [
        (manifest.run_id, f"runs/{folders[manifest.run_id]}/report.html") for manifest in reversed(found.manifests)
    ]
    yield f"<p>Runs: {linked(links[:MOST_RUNS])}</p>"
    if left := links[MOST_RUNS:]:
        yield f"<details><summary>{show_count(len(left), 'more run')}</summary><p>{linked(left)}</p></details>"


def _notes(notes: Sequence[str]) -> Iterator[str]:
    if notes:
        yield f"<details><summary>{show_count(len(notes), 'note')}</summary>"
        yield f'<ul class="notes">{"".join(f"<li>{for_html(note)}</li>" for note in notes)}</ul></details>'
