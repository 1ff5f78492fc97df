"""The report for machines and documents: JSON, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import msgspec

from enginecmp_analysis.data.cells import FIELDS, cell_values, short_name
from enginecmp_analysis.output.decision_markdown import markdown_decisions, markdown_quality
from enginecmp_analysis.output.findings_table import markdown_findings
from enginecmp_analysis.output.table import verdict_words
from enginecmp_analysis.report import Analysis
from enginecmp_analysis.schema import Comparison, StatsReport, Summary


def to_json(report: msgspec.Struct) -> str:
    """Return the report as indented JSON; what is not a number is null."""
    # msgspec writes NaN and infinities as null, which is what the schema asks for.
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()


def to_csv(report: StatsReport) -> str:
    """Return the comparisons as CSV; absent numbers are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [name for name in Comparison.__struct_fields__ if name not in ("cell", "warnings", "details")]
    writer.writerow([*FIELDS, *names, "warnings"])
    for c in report.comparisons:
        writer.writerow([*cell_values(c.cell), *(_plain(getattr(c, name)) for name in names), "; ".join(c.warnings)])
    return out.getvalue()


def to_markdown(analysis: Analysis) -> str:
    """Return comparisons and summaries as Markdown tables, for an issue or a pull request."""
    report = analysis.report
    lines: list[str] = []
    for context in analysis.contexts:
        lines += [f"### {context.scenario}: {context.model}", ""]
        lines += [*(f"- {label}: {text}" for label, text in context.engines.items()), ""]
        lines += markdown_quality([row for row in report.quality or [] if row.scenario == context.scenario])
        lines += _markdown_comparisons([c for c in report.comparisons if c.scenario == context.scenario])
        lines += _markdown_summaries([s for s in report.summaries if s.scenario == context.scenario])
        lines += markdown_findings(report, context.scenario)
    lines += markdown_decisions(report)
    lines += [f"- {warning}" for warning in dict.fromkeys(report.warnings)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_comparisons(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    rows = ["| cell | metric | engine / baseline | ratio | 95 % CI | verdict |", "|---|---|---|---|---|---|"]
    for c in comparisons:
        name = f"**{c.metric}**" if c.primary else c.metric
        limits = f"{_short(c.ci_low)} – {_short(c.ci_high)}" if math.isfinite(c.ci_low) else "n/a"
        rows.append(
            f"| {short_name(c.cell)} | {name} | {c.engine} / {c.baseline} | {_short(c.ratio)} | {limits} "
            f"| {verdict_words(c)} |"
        )
    return [*rows, ""]


def _markdown_summaries(summaries: Sequence[Summary]) -> list[str]:
    names = ("cell", "metric", "engine", "mean", "95 % CI", "p50", "p90", "launches", "requests")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for s in summaries:
        limits = f"{_short(s.ci_low)} – {_short(s.ci_high)}" if math.isfinite(s.ci_low) else "n/a"
        rows.append(
            f"| {short_name(s.cell)} | {s.metric} | {s.engine} | {_short(s.mean)} | {limits} "
            f"| {_short(s.p50)} | {_short(s.p90)} | {s.n_launches} | {s.n_samples} |"
        )
    return [*rows, ""]


def _short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "n/a"


def _plain(value: object) -> object:
    # None is written as an empty field by the csv module itself.
    return "" if isinstance(value, float) and not math.isfinite(value) else value
