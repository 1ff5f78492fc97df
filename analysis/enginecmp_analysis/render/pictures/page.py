"""One HTML file that needs nothing else: the answer first, then pictures by question, then every number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import NamedTuple

from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from enginecmp.format.text import to_json as encode
from enginecmp.format.text import visible
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.decisions.frontier import frontier
from enginecmp_analysis.render.escape import for_html
from enginecmp_analysis.render.export import to_csv, to_json
from enginecmp_analysis.render.findings_table import BAD, finding_tables, words
from enginecmp_analysis.render.pictures.all_numbers import numbers, quality
from enginecmp_analysis.render.pictures.answer import answer, setup, warnings
from enginecmp_analysis.render.pictures.components import components
from enginecmp_analysis.render.pictures.elements import in_script, linked, table
from enginecmp_analysis.render.pictures.frontier import frontier_picture
from enginecmp_analysis.render.pictures.grid import growth
from enginecmp_analysis.render.pictures.launches import launches
from enginecmp_analysis.render.pictures.machine import machine
from enginecmp_analysis.render.pictures.picture import Picture
from enginecmp_analysis.render.pictures.ratios import ratios
from enginecmp_analysis.render.pictures.spread import spread
from enginecmp_analysis.render.pictures.tradeoff import tradeoff
from enginecmp_analysis.render.table import render

SAME = "Does it compute the same thing?"
"""The question that the equivalence gate answers."""


class Place(NamedTuple):
    """Where a page stands in a site, whose pages share one file of plotly.js.

    Attributes:
        plotly: address of that file, relative to the page.
        nonce: what marks the scripts that may run, unlike any word of the page's data.
        links: text and relative address of what the page names first.
    """

    plotly: str
    nonce: str
    links: Sequence[tuple[str, str]]


def to_page(analysis: Analysis, margin: float, place: Place | None = None) -> str:
    """Return the page.

    Args:
        analysis: with quality and whatever else was asked for.
        margin: relative equivalence margin of its verdicts.
        place: of a page that is part of a site; None makes one that needs no other file.
    """
    groups = analysis.groups
    drawn = [pictures(group, analysis, margin) for group in groups]
    names = ", ".join(context.scenario for context in analysis.contexts)
    models = ", ".join(dict.fromkeys(context.model for context in analysis.contexts))
    body = [f'<p class="quiet">{linked(place.links)}</p>'] if place else []
    body += [f'<header><p class="quiet">enginecmp</p><h1>{for_html(names)}</h1><p class="quiet">{for_html(models)}</p>']
    for group in groups:
        if len(groups) > 1:
            body.append(f"<h2>{for_html(group.context.scenario)}</h2>")
        body += answer(group.context, analysis)
    body += [*warnings(analysis), "</header>", *setup(groups), *_contents(analysis, drawn)]
    if len(groups) > 1 and (picture := frontier_picture(frontier(groups, margin))) is not None:
        body += [f'<section id="frontier"><h2>{picture.question}</h2>', *_figure("frontier-all", picture), "</section>"]
    for number, (group, found) in enumerate(zip(groups, drawn, strict=True)):
        body += _scenario(number, group, analysis, found, fold=len(groups) > 1)
    text = "\n".join(for_html(line) for line, _ in render(analysis))
    body.append('<details id="text"><summary><h2>As text</h2></summary>')
    body.append(f"<p>What <code>cmp stats --all</code> prints of the same runs.</p><pre>{text}</pre></details>")
    ours = {name: asset(f"page.{name}") for name in ("html", "css", "js")}
    nonce = f' nonce="{place.nonce}"' if place else ""
    return Template(ours["html"]).substitute(
        title=for_html(f"enginecmp: {names}"),
        style=ours["css"],
        allowed=f"'nonce-{place.nonce}'" if place else "'unsafe-inline'",
        nonce=nonce,
        plotly=f'<script{nonce} src="{place.plotly}"></script>' if place else f"<script>{get_plotlyjs()}</script>",
        body="\n".join(body),
        json=in_script(to_json(analysis.report)),
        csv=in_script(encode(to_csv(analysis.report)).decode()),
        script=asset("sortable.js") + ours["js"],
    )


def asset(name: str) -> str:
    """Return the text of a file that stands beside this module."""
    return files(__package__).joinpath(name).read_text("utf-8")


def pictures(group: GroupResult, analysis: Analysis, margin: float) -> list[Picture]:
    """Return the pictures that there is something to draw for, in the order in which they answer questions."""
    report = analysis.report
    found = (
        ratios(group.context, report.comparisons, margin),
        components(group, report.summaries),
        *growth(group, report.summaries),
        tradeoff(group, report.summaries),
        spread(group),
        launches(group),
        machine(group),
    )
    return [picture for picture in found if picture is not None]


def _questions(found: Sequence[Picture]) -> dict[str, list[Picture]]:
    """Return the pictures by the question that they answer."""
    questions: dict[str, list[Picture]] = {}
    for picture in found:
        questions.setdefault(picture.question, []).append(picture)
    return questions


def _contents(analysis: Analysis, drawn: Sequence[Sequence[Picture]]) -> Iterator[str]:
    groups = analysis.groups
    yield '<nav aria-label="Contents"><h2>Contents</h2><ul>'
    for number, (group, found) in enumerate(zip(groups, drawn, strict=True)):
        entries = [f'<li><a href="#s{number}-q{n}">{question}</a></li>' for n, question in enumerate(_questions(found))]
        if any(row.scenario == group.context.scenario for row in analysis.report.quality or []):
            entries.append(f'<li><a href="#s{number}-quality">{SAME}</a></li>')
        entries.append(f'<li><a href="#s{number}-numbers">Every number</a></li>')
        scenario = f'<a href="#s{number}">{for_html(group.context.scenario)}</a>'
        yield f"<li>{scenario}<ul>{''.join(entries)}</ul></li>" if len(groups) > 1 else "".join(entries)
    yield '<li><a href="#text">As text</a></li></ul>'
    yield '<p class="downloads">Data of this page: '
    yield '<button type="button" data-from="data-json" data-name="enginecmp-stats.json">JSON</button> '
    yield '<button type="button" data-from="data-csv" data-name="enginecmp-stats.csv">CSV</button></p></nav>'


def _scenario(
    number: int, group: GroupResult, analysis: Analysis, found: Sequence[Picture], *, fold: bool
) -> Iterator[str]:
    """Yield the pictures of one scenario by question, its findings and its numbers.

    Args:
        number: of the scenario on the page.
        group: it.
        analysis: all of them.
        found: its pictures.
        fold: show its first question only, until the others are asked for.
    """
    context = group.context
    yield f'<section class="scenario" id="s{number}">'
    yield f"<h2>{for_html(context.scenario)}</h2>"
    for n, (question, own) in enumerate(_questions(found).items()):
        yield f'<details class="question" id="s{number}-q{n}"{"" if fold and n else " open"}>'
        yield f"<summary><h3>{question}</h3></summary>"
        for picture in own:
            yield from _figure(f"s{number}-{picture.name}", picture)
        yield "</details>"
    if told := list(quality(context, analysis.report)):
        yield f'<details class="question" id="s{number}-quality"{"" if fold else " open"}>'
        yield f"<summary><h3>{SAME}</h3></summary>"
        yield from told
        yield "</details>"
    notable = [f for f in analysis.report.findings or [] if f.scenario == context.scenario and f.notable]
    if notable:
        # What must not be overlooked is not folded.
        unfolded = " open" if any(finding.verdict in BAD for finding in notable) else ""
        yield f"<details{unfolded}><summary><h3>What else the data say ({len(notable)})</h3></summary><ul>"
        yield from (f"<li>{for_html(f'{finding.topic}: {words(finding)}')}</li>" for finding in notable)
        yield "</ul></details>"
    for title, heads, rows in finding_tables(analysis.report, context.scenario):
        yield f"<h3>{for_html(title)}</h3>"
        yield from table(heads, [[for_html(value) for value in row] for row in rows])
    yield f'<details id="s{number}-numbers"><summary><h3>Every number</h3></summary>'
    yield from numbers(context, analysis.report)
    yield "</details></section>"


def _figure(identity: str, picture: Picture) -> Iterator[str]:
    views = []
    for view in picture.views:
        drawn = view.figure().to_plotly_json()  # data and layout
        drawn["layout"].pop("template", None)
        title = visible(view.title)
        views.append({**drawn, "title": title[:1].upper() + title[1:]})
    yield f'<figure id="{identity}"><h4>{for_html(views[0]["title"])}</h4>'
    if len(views) > 1:
        options = "".join(f"<option>{for_html(view.label)}</option>" for view in picture.views)
        yield f"<label>Show <select>{options}</select></label>"
    yield f'<div class="plot" style="min-height:{picture.views[0].height}px"></div>'
    yield f"<figcaption>{for_html(picture.caption)}</figcaption>"
    yield f'<script type="application/json">{in_script(to_json_plotly(views))}</script></figure>'
