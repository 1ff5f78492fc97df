"""What a reader asks beyond which engine is faster: the options that `cmp stats` and `cmp guide` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginecmp.errors import UsageError

if TYPE_CHECKING:
    from enginecmp_analysis.decisions.decide import Questions

_OPTIONS = (
    click.option(
        "--slo",
        "objectives",
        multiple=True,
        metavar="SLO",
        help="Check SLO objectives: ttft_p95<200ms,tpot_p95<30ms.",
    ),
    click.option("--price", metavar="AMOUNT/h|FILE", help="Say what tokens cost: 2.49/h, EUR 1.10/h, or a TOML file."),
    click.option("--demand", metavar="N/s", help="With --slo: machines that serve so many requests (12/s, 90/min)."),
    click.option("--budget", metavar="AMOUNT/h", help="With --slo and --price: what fits into it, or what it buys."),
    click.option(
        "--expect",
        "targets",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Hold the [[expect]] tables of a TOML file against the data; exit with 3 when one is refuted.",
    ),
)


def asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_questions(
    objectives: tuple[str, ...], price: str | None, demand: str | None, budget: str | None, targets: Path | None
) -> Questions:
    """Read what is asked beyond speed.

    Raises:
        UsageError: an option is not of its form, or lacks another one.
    """
    from enginecmp.scenarios.loader import load_expectations
    from enginecmp_analysis.decisions.decide import Questions
    from enginecmp_analysis.decisions.expect import as_claims
    from enginecmp_analysis.decisions.prices import parse_amount_per_hour, parse_demand, read_prices
    from enginecmp_analysis.decisions.slo import all_objectives

    if (demand or budget) and not objectives:
        msg = f"{'--demand' if demand else '--budget'}: expected --slo beside it, e.g. --slo 'ttft_p95<200ms', got none"
        raise UsageError(msg)
    if budget and not price:
        msg = "--budget: expected the price of a machine beside it, e.g. --price 2.49/h, got none"
        raise UsageError(msg)
    prices = read_prices(price) if price else None
    amount, currency = parse_amount_per_hour(budget, "--budget") if budget else (None, "")
    if prices and prices.currency and currency and currency != prices.currency:
        msg = f"--budget: expected the currency of the price, '{prices.currency}', got '{currency}'"
        raise UsageError(msg)
    return Questions(
        objectives=all_objectives(objectives),
        prices=prices,
        demand_per_second=parse_demand(demand) if demand else None,
        budget_per_hour=amount,
        claims=as_claims(load_expectations(targets)) if targets is not None else (),
    )
