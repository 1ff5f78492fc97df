"""One HTML file that needs nothing else: verdicts first, then pictures, then everything that `cmp stats` prints."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from importlib.resources import files
from string import Template

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from enginecmp_analysis.context import Context, GroupResult
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.decisions.schema import QualityRow
from enginecmp_analysis.output.layout import show_count, show_limits, show_times
from enginecmp_analysis.output.table import render, verdict_words
from enginecmp_analysis.pictures.grid import growth, tradeoff
from enginecmp_analysis.pictures.launches import launches
from enginecmp_analysis.pictures.machine import machine
from enginecmp_analysis.pictures.picture import Picture
from enginecmp_analysis.pictures.ratios import ratios
from enginecmp_analysis.pictures.spread import spread
from enginecmp_analysis.report import Analysis

CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "showSendToCloud": False,
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
"""Of plotly: nothing of a page may leave the machine of its reader."""

MARKS = {"faster": "+", "slower": "−", "equivalent": "="}


def to_page(analysis: Analysis, margin: float) -> str:
    """Return the page.

    Args:
        analysis: with quality and whatever else was asked for.
        margin: relative equivalence margin of its verdicts.
    """
    names = ", ".join(context.scenario for context in analysis.contexts)
    body = [
        f"<h1>{escape(names)}</h1>",
        '<p class="quiet">Which inference engine is faster here, by how much, how sure, and is it computing the same '
        "thing? Made by enginecmp.</p>",
    ]
    for number, group in enumerate(analysis.groups):
        body += _scenario(number, group, analysis, margin)
    text = "\n".join(line for line, _ in render(analysis))
    body += ["<h2>In words and numbers</h2>", "<p>What <code>cmp stats</code> prints of the same runs.</p>"]
    body += [f"<pre>{escape(text)}</pre>"]
    page = Template(files(__package__).joinpath("page.html").read_text("utf-8"))
    return page.substitute(title=escape(f"enginecmp: {names}"), plotly=get_plotlyjs(), body="\n".join(body))


def pictures(group: GroupResult, analysis: Analysis, margin: float) -> list[Picture]:
    """Return the pictures that there is something to draw for, in the order in which they answer questions."""
    report = analysis.report
    found = (
        ratios(group.context, report.comparisons, margin),
        growth(group, report.summaries),
        tradeoff(group, report.summaries),
        launches(group),
        spread(group),
        machine(group),
    )
    return [picture for picture in found if picture is not None]


def _scenario(number: int, group: GroupResult, analysis: Analysis, margin: float) -> Iterator[str]:
    context = group.context
    yield f"<h2>{escape(context.scenario)}: {escape(context.model)}</h2>"
    yield f'<p class="quiet">{escape(", ".join(context.run_ids))}; {show_count(context.blocks, "block")}</p>'
    yield from _verdicts(context, analysis)
    yield from _engines(context, analysis)
    for picture in pictures(group, analysis, margin):
        yield f"<h3>{escape(picture.title)}</h3>"
        drawn = to_html(
            picture.figure,
            full_html=False,
            include_plotlyjs=False,
            div_id=f"{picture.name}-{number}",
            default_height=picture.figure.layout.height,
            config=CONFIG,
        )
        yield f"<figure>{drawn}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _verdicts(context: Context, analysis: Analysis) -> Iterator[str]:
    """Yield the primary metric's verdicts as a list."""
    own = [c for c in analysis.report.comparisons if c.scenario == context.scenario and c.primary]
    if not own:
        return
    metric, baseline = escape(own[0].metric), escape(own[0].baseline)
    yield f"<p><b>{metric}</b>, the metric this scenario decides on, against {baseline}:</p>"
    yield '<div class="wide"><table>'
    for c in own:
        cells = "".join(f"<td>{escape(text)}</td>" for text in (MARKS.get(c.verdict, "~"), c.engine, cell_name(c.cell)))
        ratio = f"<b>{show_times(c.ratio)}</b>{show_limits(c.ci_low, c.ci_high)}"
        yield f'<tr>{cells}<td class="number">{ratio}</td><td>{escape(verdict_words(c))}</td></tr>'
    yield "</table></div>"


def _engines(context: Context, analysis: Analysis) -> Iterator[str]:
    """Yield what was measured, and how each engine passed the gate."""
    quality: dict[str, list[QualityRow]] = {}
    for row in analysis.report.quality or []:
        if row.scenario == context.scenario:
            quality.setdefault(row.engine, []).append(row)
    yield '<div class="wide"><table><tr><th>engine</th><th>what it is</th><th>mean KL to the reference</th></tr>'
    for label, text in context.engines.items():
        gate = "; ".join(
            f"{row.quantization} {row.mean_kl:.1e}" for row in quality.get(label, []) if row.mean_kl is not None
        )
        role = "baseline; " if label == context.baseline else ""
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in (label, f"{role}{text}", gate or "not measured"))
        yield f"<tr>{cells}</tr>"
    yield "</table></div>"
