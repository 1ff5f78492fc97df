"""From verdicts to a decision: quality, claims, money, machines and dominated engines, put into the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.decisions.capacity import Need, capacity
from enginecmp_analysis.decisions.expect import Claim, expectations, expectations_of
from enginecmp_analysis.decisions.limit_search import limits
from enginecmp_analysis.decisions.money import money
from enginecmp_analysis.decisions.pareto import pareto
from enginecmp_analysis.decisions.prices import Prices
from enginecmp_analysis.decisions.quality import add_quality
from enginecmp_analysis.decisions.slo import Objective, check_all, failed_requests
from enginecmp_analysis.judge.judge import Options


@dataclass(frozen=True, slots=True)
class Questions:
    """What a reader asks beyond which engine is faster.

    Attributes:
        objectives: the SLO.
        prices: of machines and energy.
        demand_per_second: requests per second to serve.
        budget_per_hour: what may be spent.
        claims: targets from outside the runs; those that runs bring themselves are judged anyway.
    """

    objectives: Sequence[Objective] = ()
    prices: Prices | None = None
    demand_per_second: float | None = None
    budget_per_hour: float | None = None
    claims: Sequence[Claim] = ()


def add_limits(analysis: Analysis) -> None:
    """Put into the report what searches for the largest load found."""
    report = analysis.report
    report.limits = [
        row for group in analysis.groups for run in group.runs for row in limits(group.context.scenario, run)
    ] or report.limits


def decide_more(analysis: Analysis, options: Options, questions: Questions) -> None:
    """Answer the questions, and what the runs themselves ask, inside `analysis.report`.

    Raises:
        UsageError: a price is missing or its name misspelt.
    """
    report, groups = analysis.report, analysis.groups
    add_quality(analysis)
    add_limits(analysis)
    report.expectations = [
        *expectations_of(groups, questions.claims, include_flagged=options.include_flagged),
        *(row for group in groups for row in expectations(group, include_flagged=options.include_flagged)),
    ] or report.expectations
    if questions.objectives:
        report.slos = [
            line
            for group in groups
            for line in check_all(
                group.context.scenario, group.means, questions.objectives, failed_requests(group.runs)
            )
        ]
    if questions.prices is not None:
        report.money = money(analysis, questions.prices, options)
    if questions.demand_per_second is not None or questions.budget_per_hour is not None:
        need = Need(questions.objectives, questions.demand_per_second, questions.budget_per_hour, questions.prices)
        report.capacity = capacity(analysis, need)
        if options.include_flagged:
            report.warnings.append("machines: flagged requests are counted, so nothing is proven")
    report.pareto = [row for group in groups for row in pareto(group, options, questions.prices)] or report.pareto
