"""Capacity and cost at the SLO, and targets held against the data."""

from __future__ import annotations

from collections import Counter

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.decisions.capacity import shape_name
from enginecmp_analysis.decisions.money import PRIMARY_COST
from enginecmp_analysis.guide.words import run_names, with_limits
from enginecmp_analysis.render.decision_markdown import LIMIT_TITLES, TARGET_TITLES, limit_row, target_row
from enginecmp_analysis.render.decision_table import cost_words
from enginecmp_analysis.render.layout import listed
from enginecmp_analysis.schema.guide import Section, Table


def service(analysis: Analysis) -> Section:
    """Return how much a machine serves at the SLO, and how many machines a demand takes."""
    section = Section(name="service", title="Capacity at the SLO")
    found = analysis.report.capacity
    if not found:
        section.text.append("No SLO was given, so nothing is said of capacity: add --slo 'ttft_p95<200ms'.")
        return section
    asked = [f"SLO {', '.join(found.slo)}"]
    if found.demand_per_second is not None:
        asked.append(f"demand {found.demand_per_second:.4g} requests/s")
    if found.budget_per_hour is not None:
        asked.append(f"budget {found.budget_per_hour:g} {found.currency}/h".replace(" /h", "/h"))
    section.text.append(f"Asked: {'; '.join(asked)}.")
    section.text += [f"{choice}." for choice in found.choices]
    runs = {group.context.scenario: run_names(group) for group in analysis.groups}
    rows = [
        [
            row.engine,
            f"{row.scenario}, {shape_name(row)}",
            row.answer,
            "; ".join(row.measure) or "–",
            runs[row.scenario],
        ]
        for row in found.rows
    ]
    if rows:
        heads = ["engine", "requests", "answer (99 %)", "to know more, measure", "run"]
        section.table = Table(heads=heads, rows=rows)
    else:
        section.text.append("No run holds requests of a load, so the data cannot tell.")
    return section


def largest_loads(analysis: Analysis) -> Section | None:
    """Return what searches for the largest load found; None where there was none."""
    rows = analysis.report.limits or []
    if not rows:
        return None
    table = Table(heads=list(LIMIT_TITLES), rows=[list(limit_row(row)) for row in rows])
    return Section(name="limits", title="Largest load that keeps the SLO", table=table)


def cost(analysis: Analysis) -> Section | None:
    """Return what requests cost; None where no price was given."""
    money = analysis.report.money
    if not money:
        return None
    unit = money.currency or "unit of the price"
    words = {(c.scenario, c.cell, c.engine): cost_words(c) for c in money.comparisons if c.metric == PRIMARY_COST}
    runs = {group.context.scenario: run_names(group) for group in analysis.groups}
    rows = [
        [
            row.engine,
            f"{row.scenario}, {short_name(row.cell)}",
            with_limits(row.mean, row.ci_low, row.ci_high),
            words.get((row.scenario, row.cell, row.engine), "–"),
            runs[row.scenario],
        ]
        for row in money.rows
        if row.metric == PRIMARY_COST
    ]
    section = Section(name="cost", title="Cost", notes=list(money.absent))
    if rows:
        heads = ["engine", "requests", f"1,000 requests, {unit} [95 % CI]", "against the baseline", "run"]
        section.table = Table(heads=heads, rows=rows)
    return section


def targets(analysis: Analysis) -> Section:
    """Return the table Target | Actual | Status."""
    section = Section(name="targets", title="Targets")
    rows = analysis.report.expectations or []
    if not rows:
        section.text.append("None was given: neither the scenarios nor --expect FILE hold an [[expect]] table.")
        return section
    counts = Counter(row.status for row in rows)
    told = listed([f"{count} {status}" for status, count in counts.items()])
    section.text.append(f"{told}; each judged alone at 95 %.")
    section.table = Table(heads=list(TARGET_TITLES), rows=[list(target_row(row, row.status)) for row in rows])
    return section
