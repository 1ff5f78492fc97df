"""Quality, claims, money, machines and dominated engines as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from enginecmp_analysis.data.cells import cell_name, short_name
from enginecmp_analysis.decisions.capacity import shape_name
from enginecmp_analysis.decisions.schema import Capacity, ExpectationRow, Money, ParetoRow, QualityRow
from enginecmp_analysis.output.decision_table import (
    actual_words,
    charge_words,
    cost_words,
    expected_range,
    pareto_words,
    quality_values,
)
from enginecmp_analysis.schema import StatsReport


def markdown_quality(rows: Sequence[QualityRow]) -> list[str]:
    """Return the quality of the engines of one group."""
    titles = ("engine", "file", "mean KL", "top-1", "perplexity", "nats worse [95 % CI]", "greedy tokens")
    return _table("quality", titles, ((row.engine, *quality_values(row)) for row in rows))


def markdown_decisions(report: StatsReport) -> list[str]:
    """Return what stands below all groups."""
    lines = [*_expectations(report.expectations or []), *_pareto(report.pareto or [])]
    if report.money:
        lines += _money(report.money)
    return lines + (_capacity(report.capacity) if report.capacity else [])


def _expectations(rows: Sequence[ExpectationRow]) -> list[str]:
    titles = ("engine", "metric", "cell", "expected", "actual [95 % CI]", "status", "source")
    return _table(
        "expectations",
        titles,
        (
            (
                row.engine,
                row.metric,
                short_name(row.cell) if row.actual is not None else "",
                expected_range(row),
                actual_words(row),
                f"**{row.status}**" if row.status == "refuted" else row.status,
                row.source,
            )
            for row in rows
        ),
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
    return [*_table("money", titles, rows), *(f"- {text}" for text in money.absent), *([""] if money.absent else [])]


def _capacity(capacity: Capacity) -> list[str]:
    titles = ("scenario", "requests", "engine", "answer", "to know more, measure")
    rows = ((row.scenario, shape_name(row), row.engine, row.answer, "; ".join(row.measure)) for row in capacity.rows)
    choices = [f"- {choice}" for choice in capacity.choices]
    return [*_table(f"machines for {', '.join(capacity.slo)}", titles, rows), *choices, *([""] if choices else [])]


def _table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(value.replace('|', '/') for value in row)} |" for row in rows]
    if not lines:
        return []
    return [f"**{caption}**", "", f"| {' | '.join(titles)} |", "|---" * len(titles) + "|", *lines, ""]
