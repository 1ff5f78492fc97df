"""From verdicts to a decision: quality, claims, money, machines and dominated engines, put into the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginecmp_analysis.decisions.capacity import Need, capacity
from enginecmp_analysis.decisions.expect import expectations
from enginecmp_analysis.decisions.money import money
from enginecmp_analysis.decisions.pareto import pareto
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.decisions.quality import add_quality
from enginecmp_analysis.decisions.slo import Promise, check_all, failed_requests
from enginecmp_analysis.judge import Options
from enginecmp_analysis.report import Analysis


@dataclass(frozen=True, slots=True)
class Questions:
    """What a reader asks beyond which engine is faster.

    Attributes:
        promises: the SLO.
        prices: of machines and energy.
        demand_per_second: requests per second to serve.
        budget_per_hour: what may be spent.
    """

    promises: Sequence[Promise] = ()
    prices: Prices | None = None
    demand_per_second: float | None = None
    budget_per_hour: float | None = None


def decide_more(analysis: Analysis, options: Options, questions: Questions) -> None:
    """Answer the questions, and what the runs themselves ask, inside `analysis.report`.

    Raises:
        UsageError: a price is missing or its name misspelt.
    """
    report, groups = analysis.report, analysis.groups
    add_quality(analysis)
    report.expectations = [
        row for group in groups for row in expectations(group, include_flagged=options.include_flagged)
    ] or report.expectations
    if questions.promises:
        report.slos = [
            line
            for group in groups
            for line in check_all(group.context.scenario, group.means, questions.promises, failed_requests(group.runs))
        ]
    if questions.prices is not None:
        report.money = money(analysis, questions.prices, options)
    if questions.demand_per_second is not None or questions.budget_per_hour is not None:
        need = Need(questions.promises, questions.demand_per_second, questions.budget_per_hour, questions.prices)
        report.capacity = capacity(analysis, need)
        if options.include_flagged:
            report.warnings.append("machines: flagged requests are counted, so nothing is proven")
    report.pareto = [row for group in groups for row in pareto(group, options, questions.prices)] or report.pareto
