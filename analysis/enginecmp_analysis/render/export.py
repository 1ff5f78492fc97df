"""The report for machines and documents: JSON, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import msgspec

from enginecmp.format.text import to_json as encode
from enginecmp_analysis.data.cells import FIELDS, cell_name, cell_values, short_name
from enginecmp_analysis.data.group import Analysis, Context
from enginecmp_analysis.render.decision_markdown import markdown_decisions, markdown_quality
from enginecmp_analysis.render.escape import for_csv, for_json, for_markdown, markdown_table
from enginecmp_analysis.render.findings_table import markdown_findings
from enginecmp_analysis.render.first_screen import nothing
from enginecmp_analysis.render.ranking_rows import footnote, ranking_rows
from enginecmp_analysis.render.sentence import answers
from enginecmp_analysis.render.table import verdict_words
from enginecmp_analysis.schema.stats import Comparison, Ranking, StatsReport, Summary

MEANS = (
    *("engine_mean", "engine_mean_low", "engine_mean_high"),
    *("baseline_mean", "baseline_mean_low", "baseline_mean_high"),
)
"""Columns of the CSV beside those of a comparison."""


def to_json(report: msgspec.Struct) -> str:
    """Return the report as indented JSON; what is not a number is null."""
    # msgspec writes NaN and infinities as null, which is what the schema asks for.
    return for_json(encode(report, indent=2).decode())


def to_csv(report: StatsReport) -> str:
    """Return the comparisons as CSV, with the means of both engines; absent numbers are empty.

    What was compared with nothing, such as an engine alone, has a row of its own with its mean and no ratio.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for name in Comparison.__struct_fields__ if name not in ("cell", "warnings", "details")]
    writer.writerow([*FIELDS, *names, "warnings", *MEANS])
    means = {(s.scenario, s.cell, s.metric, s.engine): s for s in report.summaries}
    told = set()
    for c in report.comparisons:
        place = (c.scenario, c.cell, c.metric)
        told |= {(*place, c.engine), (*place, c.baseline)}
        own, base = means.get((*place, c.engine)), means.get((*place, c.baseline))
        values = [*cell_values(c.cell), *(_plain(getattr(c, name)) for name in names), "; ".join(c.warnings)]
        writer.writerow([for_csv(value) for value in [*values, *_means(own), *_means(base)]])
    for key, s in means.items():
        if key not in told:
            known = {name: getattr(s, name) for name in ("scenario", "engine", "metric", "n_launches", "n_samples")}
            values = [*cell_values(s.cell), *(known.get(name, "") for name in names), ""]
            writer.writerow([for_csv(value) for value in [*values, *_means(s), *_means(None)]])
    return out.getvalue()


def _means(summary: Summary | None) -> list[object]:
    """Return mean and limits of one engine; three empty fields without it."""
    if summary is None:
        return ["", "", ""]
    return [_plain(value) for value in (summary.mean, summary.ci_low, summary.ci_high)]


def to_markdown(analysis: Analysis) -> str:
    """Return comparisons and summaries as Markdown tables, for an issue or a pull request."""
    report = analysis.report
    lines: list[str] = []
    for context in analysis.contexts:
        rankings = [ranking for ranking in report.rankings if ranking.scenario == context.scenario]
        told = answers(rankings, report, context) if rankings else [nothing(analysis)]
        lines += [line for text in told for line in (f"**{for_markdown(text)}**", "")]
        lines += [line for ranking in rankings for line in _markdown_ranking(ranking, context)]
        lines += [f"### {for_markdown(context.scenario)}: {for_markdown(context.model)}", ""]
        lines += [*(f"- {for_markdown(label)}: {for_markdown(text)}" for label, text in context.engines.items()), ""]
        lines += markdown_quality([row for row in report.quality or [] if row.scenario == context.scenario])
        lines += _markdown_comparisons([c for c in report.comparisons if c.scenario == context.scenario])
        lines += _markdown_summaries([s for s in report.summaries if s.scenario == context.scenario])
        lines += markdown_findings(report, context.scenario)
    lines += markdown_decisions(report)
    lines += [f"- {for_markdown(warning)}" for warning in dict.fromkeys(report.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_ranking(ranking: Ranking, context: Context) -> list[str]:
    """Return one line an engine, as on the first screen."""
    unit, rows = ranking_rows(ranking, context)
    titles = ("rank", "engine", f"{ranking.metric} ({unit})", "of the best", "gate", "verdict")
    values = (
        (f"{row.rank} {row.letters}".strip(), row.engine, row.value, row.ratio, row.gate, row.word) for row in rows
    )
    lines = [f"**{for_markdown(cell_name(ranking.cell))}**", "", *markdown_table(titles, values)]
    return [*lines, *(["", for_markdown(note)] if (note := footnote(ranking)) else []), ""]


def _markdown_comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    rows = ["| cell | metric | engine / baseline | ratio | 95 % CI | verdict |", "|---|---|---|---|---|---|"]
    for c in comparisons:
        name = f"**{c.metric}**" if c.primary else c.metric
        cell, pair = for_markdown(short_name(c.cell)), for_markdown(f"{c.engine} / {c.baseline}")
        limits = f"{_short(c.ci_low)} – {_short(c.ci_high)}" if math.isfinite(c.ci_low) else "n/a"
        rows.append(f"| {cell} | {name} | {pair} | {_short(c.ratio)} | {limits} | {verdict_words(c)} |")
    return [*rows, ""]


def _markdown_summaries(summaries: Sequence[Summary]) -> list[str]:
    names = ("cell", "metric", "engine", "mean", "95 % CI", "p50", "p90", "launches", "requests")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for s in summaries:
        limits = f"{_short(s.ci_low)} – {_short(s.ci_high)}" if math.isfinite(s.ci_low) else "n/a"
        engine = for_markdown(s.engine) + (" (all flagged)" if s.flagged else "")
        rows.append(
            f"| {for_markdown(short_name(s.cell))} | {s.metric} | {engine} "
            f"| {_short(s.mean)} | {limits} | {_short(s.p50)} | {_short(s.p90)} | {s.n_launches} | {s.n_samples} |"
        )
    return [*rows, ""]


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "n/a"


def _plain(value: object) -> object:
    # None is written as an empty field by the csv module itself.
    return "" if value is msgspec.UNSET or (isinstance(value, float) and not math.isfinite(value)) else value
