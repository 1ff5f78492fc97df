"""What may go wrong with an engine that the numbers recommend: spread, drift, failures, quality, licence, limits."""

from __future__ import annotations

from collections.abc import Iterator

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.guide.words import run_names
from enginecmp_analysis.render.findings_table import words
from enginecmp_analysis.render.layout import show_percent
from enginecmp_analysis.schema.guide import Section, Table

WIDE = 0.05
"""Launch means that spread by more than this share are a risk of its own."""

TOPICS = frozenset({"drift", "leak", "conditions", "clock"})
"""Findings that speak of what may happen in operation."""


def risks(analysis: Analysis) -> Section:
    """Return the section: one row a risk, by engine."""
    rows = [list(row) for row in dict.fromkeys(tuple(row) for row in _risks(analysis))]
    section = Section(name="risks", title="Risks")
    if rows:
        rows.sort(key=lambda row: row[0])
        section.table = Table(heads=["engine", "kind", "what the data say", "run"], rows=rows)
    else:
        section.text.append("The runs show none: no wide spread, drift, failure or loss of quality.")
    return section


def _risks(analysis: Analysis) -> Iterator[list[str]]:
    for group in analysis.groups:
        runs = run_names(group)
        yield from ([*row, runs] for row in (*_spread(analysis, group), *_quality(analysis, group), *_facts(group)))
        for finding in analysis.report.findings or []:
            if finding.scenario == group.context.scenario and finding.topic in TOPICS and finding.notable:
                yield [finding.engine, finding.topic, words(finding), runs]
        for kind, notes in (("failures", group.context.failed), ("disturbance", group.context.excluded)):
            for note in notes:
                engine = next((name for name in group.context.engines if note.startswith(f"{name}:")), "all")
                yield [engine, kind, note.removeprefix(f"{engine}: "), runs]


def _spread(analysis: Analysis, group: GroupResult) -> Iterator[tuple[str, str, str]]:
    context = group.context
    for summary in analysis.report.summaries:
        own = (summary.scenario, summary.metric) == (context.scenario, context.primary_metric)
        if own and not summary.flagged and summary.cv_launches > WIDE:
            what = f"launches spread by {show_percent(summary.cv_launches)} in {summary.metric}"
            yield summary.engine, "spread", f"{what}, {short_name(summary.cell)}, over {summary.n_launches} launches"


def _quality(analysis: Analysis, group: GroupResult) -> Iterator[tuple[str, str, str]]:
    for engine in group.context.not_comparable:
        yield engine, "quality", "does not compute what the reference computes: not comparable"
    for row in analysis.report.quality or []:
        if row.scenario != group.context.scenario or not row.timed or row.nll_difference_low is None:
            continue
        if row.nll_difference_low > 0:
            limits = f"[{row.nll_difference_low:.4f}, {row.nll_difference_high:.4f}]"
            what = f"worse text than the reference's: ΔNLL {row.nll_difference:.4f} {limits} nats/token"
            yield row.engine, "quality", f"{what} on {row.quantization}"


def _facts(group: GroupResult) -> Iterator[tuple[str, str, str]]:
    for run in group.runs:
        for engine in run.manifest.engines:
            licence = engine.options.get("licence")
            yield engine.name, "licence", str(licence) if licence else "not recorded in this run; see `cmp engines`"
            limits = engine.options.get("limits")
            if isinstance(limits, list):
                yield from ((engine.name, "limit", str(limit)) for limit in limits)
