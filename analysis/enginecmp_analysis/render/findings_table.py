"""Findings in words: below the cells of a table, and as a list in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enginecmp.format.records import PROFILED
from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.render.escape import for_markdown, markdown_table
from enginecmp_analysis.render.layout import WIDTH, Line, shorten, show_percent, three_digits, unit_for, wrap
from enginecmp_analysis.schema.stats import Finding, StatsReport

LENGTHS = (1024, 4096, 10240, 32768)
"""Tokens of a request at which the KV cache is told."""

ENGINES = 2
"""Of a table side by side in 80 columns."""

BAD = {"leaks", "cached", "follows", "drifts", "gpu_throttled", "cpu_throttled", "gpu_foreign_process"}
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
            style = "yellow" if finding.verdict in BAD else ""
            yield from ((text, style) for text in wrap(words(finding), "  "))
    for title, heads, rows in finding_tables(report, scenario):
        yield "", ""
        yield from ((text, "bold") for text in wrap(title, ""))
        # As many engines beside each other as a line holds.
        for first in range(2, len(heads), ENGINES):
            shown = [[row[0], row[1], *row[first : first + ENGINES]] for row in [heads, *rows]]
            widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
            for number, row in enumerate(shown):
                cells = (f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
                yield f"  {row[0]:<{widths[0]}}  {'  '.join(cells)}", "" if number else "dim"


def finding_tables(report: StatsReport, scenario: str) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield title, heads and rows of what is read side by side: components of a pass, sizes of the KV cache.

    The first two columns are the row's own, then comes one an engine.
    """
    own = [f for f in report.findings or [] if f.scenario == scenario]
    profiles = [f for f in own if f.topic == "bottleneck"]
    for cell in dict.fromkeys(f.cell for f in profiles):
        yield _components([f for f in profiles if f.cell == cell], short_name(cell))
    if caches := [f for f in own if f.topic == "kv cache"]:
        yield _caches(caches)


def _components(profiles: Sequence[Finding], where: str) -> tuple[str, list[str], list[list[str]]]:
    largest = max(value for f in profiles for name, value in f.details.items() if name.endswith("_seconds"))
    scale, unit = unit_for("_seconds", largest)
    names = [name for name in PROFILED if any(f.details.get(f"{name}_seconds", 0.0) > 0 for f in profiles)]
    names.sort(key=lambda name: -max(f.details.get(f"{name}_share", 0.0) for f in profiles))
    rows = []
    for name in names:
        calls = max(f.details.get(f"{name}_calls", 0.0) for f in profiles)
        values = [(f.details.get(f"{name}_seconds"), f.details.get(f"{name}_share", 0.0)) for f in profiles]
        told = [
            "–" if spent is None else f"{three_digits(spent / scale)}  {show_percent(share):>6}"
            for spent, share in values
        ]
        rows.append([name, f"{calls:,.0f}" if calls else "–", *told])
    slowest = ", ".join(f"{f.engine} {f.verdict}" for f in profiles)
    title = f"components of a pass, {where}: {unit or 's'} and share; bottleneck: {slowest}"
    return title, ["", "calls", *(shorten(f.engine, 18) for f in profiles)], rows


def _caches(caches: Sequence[Finding]) -> tuple[str, list[str], list[list[str]]]:
    rows = []
    for tokens in LENGTHS:
        halves = next((f.details["formula_float16_bytes"] for f in caches if f.details), None)
        formula = "–" if halves is None else f"{_bytes(halves * tokens)} / {_bytes(2 * halves * tokens)}"
        told = ["reserved" if f.verdict == "reserved" else _bytes(f.value * tokens) for f in caches]
        rows.append([f"{tokens:,} tokens", formula, *told])
    title = "KV cache of one request, by the formula and at the measured bytes a token"
    return title, ["", "float16 / float32", *(shorten(f.engine, 18) for f in caches)], rows


def _bytes(value: float) -> str:
    scale, unit = unit_for("bytes", value)
    return f"{three_digits(value / scale)} {unit or 'B'}"


def markdown_findings(report: StatsReport, scenario: str) -> list[str]:
    """Return the same as a Markdown list."""
    found = [f for f in report.findings or [] if f.scenario == scenario and f.notable]
    lines = [*(f"- {f.topic}: {for_markdown(words(f))}" for f in found), ""] if found else []
    for title, heads, rows in finding_tables(report, scenario):
        lines += [f"**{for_markdown(title)}**", "", *markdown_table([*map(for_markdown, heads)], rows), ""]
    return lines


def words(finding: Finding) -> str:
    """Return a finding with the engine and the cell that it is about."""
    place = f", {short_name(finding.cell)}" if finding.cell is not None else ""
    return f"{finding.engine}{place}: {finding.text}"
