"""Quality, claims, money, machines and dominated engines as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from enginecmp_analysis.data.cells import cell_name, short_name
from enginecmp_analysis.decisions.capacity import shape_name
from enginecmp_analysis.render.decision_table import (
    actual_words,
    charge_words,
    cost_words,
    expected_range,
    pareto_words,
    quality_values,
)
from enginecmp_analysis.render.escape import for_markdown, markdown_table
from enginecmp_analysis.schema.decisions import Capacity, ExpectationRow, LimitRow, Money, ParetoRow, QualityRow
from enginecmp_analysis.schema.stats import StatsReport

LIMIT_TITLES = ("engine", "unit", "largest kept", "smallest broken", "in words", "SLO", "run")

TARGET_TITLES = ("engine", "cell", "target", "actual [95 % CI]", "status", "source", "measured")


def markdown_quality(rows: Sequence[QualityRow]) -> list[str]:
    """Return the quality of the engines of one group."""
    titles = ("engine", "file", "mean KL", "top-1", "perplexity", "ΔNLL (nats/token) [95 % CI]", "greedy tokens")
    return _table("quality", titles, ((row.engine, *quality_values(row)) for row in rows))


def markdown_decisions(report: StatsReport) -> list[str]:
    """Return what stands below all groups."""
    lines = [*_limits(report.limits or []), *_expectations(report.expectations or []), *_pareto(report.pareto or [])]
    if report.money:
        lines += _money(report.money)
    return lines + (_capacity(report.capacity) if report.capacity else [])


def _limits(rows: Sequence[LimitRow]) -> list[str]:
    return _table("largest load that keeps the SLO", LIMIT_TITLES, map(limit_row, rows))


def limit_row(row: LimitRow) -> tuple[str, ...]:
    """Return what a search found, as text, in the columns of `LIMIT_TITLES`."""
    ends = ("none proven" if end is None else f"{end:g}" for end in (row.kept, row.broken))
    return (row.engine, row.unit, *ends, row.text, ", ".join(row.slo), row.run)


def _expectations(rows: Sequence[ExpectationRow]) -> list[str]:
    statuses = (f"**{row.status}**" if row.status == "refuted" else row.status for row in rows)
    return _table("targets", TARGET_TITLES, map(target_row, rows, statuses))


def target_row(row: ExpectationRow, status: str) -> tuple[str, ...]:
    """Return a claim held against the data, its status as it is to be written, in the columns of `TARGET_TITLES`."""
    return (
        row.engine,
        short_name(row.cell) if row.actual is not None else "",
        f"{row.metric} {expected_range(row)}",
        actual_words(row),
        status,
        row.source,
        row.measured,
    )


def _pareto(rows: Sequence[ParetoRow]) -> list[str]:
    return _table(
        "dominated, where proven",
        ("scenario", "weighed", "engine"),
        ((row.scenario, ", ".join(row.objectives), pareto_words(row)) for row in rows),
    )


def _money(money: Money) -> list[str]:
    unit = money.currency or "unit of the price"
    titles = (
        "scenario",
        "cell",
        "metric",
        "engine",
        f"mean in {unit}",
        "95 % CI",
        "time charged",
        "against the baseline",
    )
    words = {(c.scenario, c.cell, c.metric, c.engine): cost_words(c) for c in money.comparisons}
    rows = (
        (
            row.scenario,
            cell_name(row.cell),
            row.metric,
            row.engine,
            f"{row.mean:.4g}",
            f"{row.ci_low:.4g} – {row.ci_high:.4g}" if math.isfinite(row.ci_low) else "n/a",
            charge_words(row),
            words.get((row.scenario, row.cell, row.metric, row.engine), ""),
        )
        for row in money.rows
    )
    return [
        *_table("money", titles, rows),
        *(f"- {for_markdown(text)}" for text in money.absent),
        *([""] if money.absent else []),
    ]


def _capacity(capacity: Capacity) -> list[str]:
    titles = ("scenario", "requests", "engine", "answer", "to know more, measure")
    rows = ((row.scenario, shape_name(row), row.engine, row.answer, "; ".join(row.measure)) for row in capacity.rows)
    choices = [f"- {for_markdown(choice)}" for choice in capacity.choices]
    return [*_table(f"machines for {', '.join(capacity.slo)}", titles, rows), *choices, *([""] if choices else [])]


def _table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    told = list(rows)
    return [f"**{caption}**", "", *markdown_table(titles, told), ""] if told else []
