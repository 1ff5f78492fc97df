"""What to try next, ranked by the seconds that the engines' own profiles say it could save."""

from __future__ import annotations

import math

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import cell_order, short_name
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.data.metrics import COMPONENT_OF
from enginecmp_analysis.guide.words import run_names, start_command, tune_command, value_words
from enginecmp_analysis.render.layout import show_percent
from enginecmp_analysis.schema.guide import Section, Table
from enginecmp_analysis.schema.stats import Summary

MOST = 10
"""Rows of one cell."""


def roadmap(analysis: Analysis) -> Section:
    """Return the section.

    The most that work on a component can save is all of its time; what another engine needs for the same component
    says how much of that somebody has saved already.
    """
    section = Section(name="roadmap", title="What to try next")
    rows: list[list[str]] = []
    for group in analysis.groups:
        summaries = [s for s in analysis.report.summaries if s.metric in COMPONENT_OF]
        own = [s for s in summaries if s.scenario == group.context.scenario]
        for cell in sorted({s.cell for s in own if s.cell is not None}, key=cell_order):
            rows += _rows(group, cell, [s for s in own if s.cell == cell])
    if rows:
        section.text.append(
            "Ranked by the time of a component in one pass, which is the most that work on it can save, as each "
            "engine's own profile tells it. Each engine looks in its own way, so differences between engines are a "
            "hint, no verdict."
        )
        heads = ["pass", "engine", "component", "saves at most", "of the pass", "the fastest here takes", "run"]
        section.table = Table(heads=heads, rows=rows)
    else:
        section.text.append("No run holds a profile, so nothing is known of where the time goes.")
        section.commands.append(start_command(analysis, "components"))
    for engine in _untuned(analysis):
        section.notes.append(f"{engine} ran with its default settings only: other ones were not raced.")
        section.commands.append(tune_command(analysis, engine))
    return section


def _rows(group: GroupResult, cell: Cell, summaries: list[Summary]) -> list[list[str]]:
    totals: dict[str, float] = {}
    fastest: dict[str, Summary] = {}
    for summary in summaries:
        totals[summary.engine] = totals.get(summary.engine, 0.0) + summary.mean
        if summary.metric not in fastest or summary.mean < fastest[summary.metric].mean:
            fastest[summary.metric] = summary
    several = len(totals) > 1
    rows = []
    for summary in sorted(summaries, key=lambda s: -s.mean)[:MOST]:
        best = fastest[summary.metric]
        total = totals[summary.engine]
        least = ""
        if several:
            least = "this one" if best is summary else f"{value_words(best)}, {best.engine}"
        share = show_percent(summary.mean / total) if total > 0 else show_percent(math.nan)
        rows.append(
            [
                short_name(cell),
                summary.engine,
                COMPONENT_OF[summary.metric],
                value_words(summary),
                share,
                least or "–",
                run_names(group),
            ]
        )
    return rows


def _untuned(analysis: Analysis) -> list[str]:
    """Return the engines of which no run holds settings that were raced."""
    found: dict[str, bool] = {}
    for group in analysis.groups:
        for run in group.runs:
            for engine in run.manifest.engines:
                if (tuned := engine.options.get("tuned")) is not None:
                    kind = str(engine.options.get("engine", engine.name))
                    found[kind] = found.get(kind, False) or tuned == "tuned"
    return [kind for kind, tuned in found.items() if not tuned]
