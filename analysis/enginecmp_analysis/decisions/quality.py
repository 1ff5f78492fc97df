"""Quality beside speed: what the equivalence gate measured on the bundled text, and who pays for speed with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from enginecmp.format.records import Equivalence
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.schema.decisions import QualityRow
from enginecmp_analysis.schema.stats import StatsReport

Z95 = 1.959963984540054
"""Limits of 95 % are so many standard errors away; positions are many, so the normal distribution will do."""


class Worse(NamedTuple):
    """By how many nats a token one engine is worse than another, with 95 % limits."""

    nats: float
    low: float
    high: float

    @property
    def se(self) -> float:
        """Return the standard error."""
        return (self.high - self.low) / 2 / Z95


def quality_rows(group: GroupResult) -> list[QualityRow]:
    """Return what was scored for every engine of a group, each file once, the timed one first."""
    found: dict[tuple[str, str], QualityRow] = {}
    for run in group.runs:
        for entry in run.manifest.equivalence:
            timed = entry.quantization in ("", run.manifest.model.quantization)
            row = _row(group.context.scenario, entry, timed)
            if row.mean_kl is not None or row.perplexity is not None or row.nll_difference is not None:
                found.setdefault((entry.engine, entry.quantization), row)
    order = list(group.context.engines)
    rows = [row for row in found.values() if row.engine in order]
    return sorted(rows, key=lambda row: (order.index(row.engine), not row.timed, row.quantization))


def _row(scenario: str, entry: Equivalence, timed: bool) -> QualityRow:
    shared = {
        name: getattr(entry, name)
        for name in QualityRow.__struct_fields__
        if name in Equivalence.__struct_fields__ and name != "scenario"
    }
    return QualityRow(scenario=scenario, timed=timed, **shared)


def worse_than_reference(rows: Sequence[QualityRow], engine: str) -> Worse | None:
    """Return by how much an engine is worse than the reference on the timed file; None where it was not measured."""
    for row in rows:
        if row.engine != engine or not row.timed:
            continue
        if row.nll_difference is not None and row.nll_difference_low is not None:
            high = row.nll_difference_high
            return Worse(row.nll_difference, row.nll_difference_low, row.nll_difference if high is None else high)
        if row.verdict == "reference":
            return Worse(0.0, 0.0, 0.0)
    return None


def difference(engine: Worse, baseline: Worse) -> Worse:
    """Return by how much one engine is worse than another, both measured against the reference.

    The two standard errors are added as if independent. Both engines read the same text, so their errors rise and
    fall together and the limits are too wide rather than too narrow.
    """
    nats = engine.nats - baseline.nats
    half = Z95 * math.hypot(engine.se, baseline.se)
    return Worse(nats, nats - half, nats + half)


def add_quality(analysis: Analysis) -> None:
    """Put quality into the report, and a warning beside every speed that is paid for with it."""
    report = analysis.report
    rows = [row for group in analysis.groups for row in quality_rows(group)]
    if not rows:
        return
    report.quality = rows
    for group in analysis.groups:
        scenario = group.context.scenario
        _warn(report, scenario, [row for row in rows if row.scenario == scenario])


def _warn(report: StatsReport, scenario: str, rows: Sequence[QualityRow]) -> None:
    here = [c for c in report.comparisons if c.scenario == scenario]
    # Once beside what is decided on; beside everything where nothing was declared to decide on.
    primary = [c for c in here if c.primary] or here
    for c in primary:
        engine, baseline = worse_than_reference(rows, c.engine), worse_than_reference(rows, c.baseline)
        if c.verdict != "faster" or engine is None:
            continue
        lost = difference(engine, baseline or Worse(0.0, 0.0, 0.0))
        if engine.low > 0 and lost.low > 0:
            whom = c.baseline if baseline else "the reference"
            c.warnings.append(
                f"faster at ΔNLL {lost.nats:+.3g} nats/token [{lost.low:+.3g}, {lost.high:+.3g}] against {whom}: "
                f"perplexity × {math.exp(lost.nats):.4g}"
            )
