"""Findings in words: below the cells of a table, and as a list in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.output.layout import WIDTH, Line, wrap
from enginecmp_analysis.schema import Finding, StatsReport

_BAD = {"leaks", "cached", "follows", "drifts", "gpu_throttled", "cpu_throttled", "gpu_foreign_process"}
"""Verdicts that a reader must not overlook."""


def render_findings(report: StatsReport, scenario: str) -> Iterator[Line]:
    """Yield the lines about one scenario: topic by topic, what is notable only."""
    found = [f for f in report.findings or [] if f.scenario == scenario and f.notable]
    if found:
        yield "", ""
        yield "── findings ".ljust(WIDTH, "─"), "bold"
    for topic in dict.fromkeys(f.topic for f in found):
        yield topic, "bold"
        for finding in [f for f in found if f.topic == topic]:
            style = "yellow" if finding.verdict in _BAD else ""
            yield from ((text, style) for text in wrap(words(finding), "  "))


def markdown_findings(report: StatsReport, scenario: str) -> list[str]:
    """Return the same as a Markdown list."""
    found = [f for f in report.findings or [] if f.scenario == scenario and f.notable]
    return [*(f"- {f.topic}: {words(f)}" for f in found), ""] if found else []


def words(finding: Finding) -> str:
    """Return a finding with the engine and the cell that it is about."""
    place = f", {short_name(finding.cell)}" if finding.cell is not None else ""
    return f"{finding.engine}{place}: {finding.text}"
