"""A ranking as the words of its columns: what `cmp stats` and the page of `cmp report` both show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.data.metrics import verdict_word
from enginecmp_analysis.render.layout import show_limits, three_digits, unit_for
from enginecmp_analysis.schema.stats import Ranked, Ranking

UNPROVEN = "exactness unproven"
"""What stands beside a verdict on an engine that is comparable on the timed file alone."""

MOST_TABLES = 2
"""Cells of a scenario with a table of their own; more of them take a line each."""


class Row(NamedTuple):
    """One engine.

    Attributes:
        rank: its number, "–" without one.
        letters: engines that share one were not told apart; empty where ranks say it all.
        engine: label.
        value: mean of the metric in the unit of the heading.
        ratio: to the best, with its limits.
        gate: what the equivalence gate says of it.
        word: its verdict.
    """

    rank: str
    letters: str
    engine: str
    value: str
    ratio: str
    gate: str
    word: str


class OverviewRow(NamedTuple):
    """One cell of many: its name, the value of the first, who that is with ties, and the others' ratios to it."""

    cell: str
    value: str
    first: str
    others: str


def ranking_rows(ranking: Ranking, context: Context) -> tuple[str, list[Row]]:
    """Return the heading of the values, and one row an engine, best first."""
    scale, unit = unit_for(ranking.metric, max((abs(row.mean) for row in ranking.rows), default=0.0))
    rows = [
        Row(
            rank="–" if row.rank is None else str(row.rank),
            letters="" if ranking.transitive else row.letters,
            engine=row.engine,
            value=three_digits(row.mean / scale),
            ratio=_ratio(row),
            gate=_gate(row.engine, context),
            word=_word(row, ranking, context),
        )
        for row in ranking.rows
    ]
    return heading(ranking.metric, unit), rows


def overview_rows(rankings: Sequence[Ranking]) -> tuple[str, list[OverviewRow]]:
    """Return the heading of the values, and one row a cell: who is first, by how much ahead of whom."""
    scale, unit = unit_for(rankings[0].metric, max(abs(row.mean) for ranking in rankings for row in ranking.rows))
    rows = []
    for ranking in rankings:
        first, *others = ranking.rows
        ties = [row.engine for row in others if row.rank == 1]
        names = " = ".join([first.engine, *ties]) if ranking.decided else f"{first.engine} (no verdict)"
        rest = ", ".join(f"{row.engine} {three_digits(row.ratio_to_best)}" for row in others if row.engine not in ties)
        rows.append(OverviewRow(short_name(ranking.cell), three_digits(first.mean / scale), names, rest))
    return heading(rankings[0].metric, unit), rows


def leader(rankings: Sequence[Ranking]) -> str:
    """Return who is first with ties and its value, of the first of several cells; "" without a ranking."""
    if not rankings:
        return ""
    unit, rows = overview_rows(rankings[:1])
    more = f", first of {len(rankings)} cells" if len(rankings) > 1 else ""
    return f"{rows[0].first}, {rows[0].value} {'' if unit == 'value' else unit}".rstrip() + more


def heading(metric: str, unit: str) -> str:
    """Return the unit of a column: "tokens/s", "ms", "GB".

    Args:
        metric: its name, which ends in its unit.
        unit: what `unit_for` chose instead; "" for the metric's own.
    """
    if unit:
        return unit
    for suffix, name in (("tokens_per_second", "tokens/s"), ("requests_per_second", "requests/s"), ("_seconds", "s")):
        if metric.endswith(suffix):
            return name
    return "value"


def footnote(ranking: Ranking) -> str:
    """Return how ranks are to be read; "" where there are none."""
    if not ranking.transitive:
        return "engines that share a letter were not told apart (all pairs, Holm, 5 %)"
    return "ranks: all pairs, Holm, 5 %; engines that share a rank were not told apart" if ranking.decided else ""


def _gate(engine: str, context: Context) -> str:
    """Return what the gate says of an engine, short enough for a column."""
    if engine in context.unproven:
        return UNPROVEN
    return context.gates.get(engine, "").replace("equivalence not", "not")


def behind_word(row: Ranked, metric: str) -> str:
    """Return the word of an engine that another one was shown to be better than.

    It is "open" where that other one is not the first, from which this engine was not told apart: its interval holds 1.
    """
    apart = row.ci_low > 1 or row.ci_high < 1
    return verdict_word(metric, "slower") if apart else "open"


def _ratio(row: Ranked) -> str:
    if not math.isfinite(row.ratio_to_best):
        return "–"
    return f"{three_digits(row.ratio_to_best)}{show_limits(row.ci_low, row.ci_high)}"


def _word(row: Ranked, ranking: Ranking, context: Context) -> str:
    if row.engine in context.not_comparable:
        return ""
    if row.engine in context.flagged:
        return "all flagged"
    if row.rank is None:
        return "no verdict"
    if row.rank > 1:
        return behind_word(row, ranking.metric)
    return "first" if sum(other.rank == 1 for other in ranking.rows) == 1 else "tied"
