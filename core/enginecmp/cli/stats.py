"""`cmp stats`: verdicts from runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enginecmp.cli.conflicts import check_stats
from enginecmp.cli.console import show
from enginecmp.cli.options import read_share
from enginecmp.errors import UsageError

if TYPE_CHECKING:
    from enginecmp_analysis.data.load import Run
    from enginecmp_analysis.decisions.decide import Questions


@click.command("stats")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--baseline", metavar="ENGINE", help="Compare with this engine instead of the run's own baseline.")
@click.option("--pairs", is_flag=True, help="Compare every engine with every other one.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show only this metric; repeatable.")
@click.option(
    "--margin", callback=read_share, default="3%", show_default=True, help="Differences below this are equivalent."
)
@click.option("--quantiles", is_flag=True, help="Compare p50, p90, p95 and p99 of launches too.")
@click.option("--details", is_flag=True, help="Show what other methods say, and effect sizes of single requests.")
@click.option(
    "--slo", "promises", multiple=True, metavar="PROMISES", help="Check promises: ttft_p95<200ms,tpot_p95<30ms."
)
@click.option("--price", metavar="AMOUNT/h|FILE", help="Say what tokens cost: 2.49/h, EUR 1.10/h, or a TOML file.")
@click.option("--demand", metavar="N/s", help="With --slo: how many machines serve so many requests (12/s, 90/min).")
@click.option("--budget", metavar="AMOUNT/h", help="With --slo and --price: what fits into it, or what it buys.")
@click.option("--plan", "planning", is_flag=True, help="Say how many blocks and requests the next run takes.")
@click.option(
    "--detect", callback=read_share, default="2%", show_default=True, help="Difference that --plan must find."
)
@click.option("--history", "over_time", is_flag=True, help="Follow the primary metric (or --metric) over runs.")
@click.option("--warmup-floor", type=click.IntRange(min=0), default=0, help="Cut at least so many requests a launch.")
@click.option("--include-flagged", is_flag=True, help="Count flagged samples too; no verdicts then.")
@click.option("--json", "form", flag_value="json", help="Print JSON (schema enginecmp-stats/1).")
@click.option("--csv", "form", flag_value="csv", help="Print comparisons as CSV.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown tables.")
@click.pass_context
def command(
    context: click.Context,
    /,
    paths: tuple[str, ...],
    baseline: str | None,
    pairs: bool,
    metrics: tuple[str, ...],
    margin: float,
    quantiles: bool,
    details: bool,
    promises: tuple[str, ...],
    price: str | None,
    demand: str | None,
    budget: str | None,
    planning: bool,
    detect: float,
    over_time: bool,
    warmup_floor: int,
    include_flagged: bool,
    form: str | None,
) -> None:
    """Say which engine is faster, by how much and how sure.

    PATHS are run folders or folders of runs (default: results). Runs of another model, machine or engine build
    are never pooled.
    """
    check_stats(context)
    from enginecmp.noise import described
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.decisions.decide import decide_more
    from enginecmp_analysis.report import Options, analyse

    if over_time:
        _history(load_runs(paths or ("results",)), metrics, form)
        return
    options = Options(
        baseline=baseline,
        pairs=pairs,
        metrics=metrics,
        quantiles=quantiles,
        margin=margin,
        include_flagged=include_flagged,
        details=details,
        warmup_floor=warmup_floor,
    )
    questions = _questions(promises, price, demand, budget)
    runs = load_runs(paths or ("results",))
    analysis = analyse(runs, options)
    analysis.report.warnings += described(run.manifest.environment for run in runs)
    decide_more(analysis, options, questions)
    if planning:
        from enginecmp_analysis.plan import plan

        plans = [plan(group, options, detect) for group in analysis.groups]
        analysis.report.plans = [found for found in plans if found is not None]
        if not analysis.report.plans:
            analysis.report.warnings.append("no plan: it takes two engines with two launches each to know the spread")
    if form is None:
        from enginecmp_analysis.output.table import render

        show(render(analysis))
        return
    from enginecmp_analysis.output.export import to_csv, to_json, to_markdown

    if form == "json":
        click.echo(to_json(analysis.report))
    elif form == "csv":
        click.echo(to_csv(analysis.report), nl=False)
    else:
        click.echo(to_markdown(analysis), nl=False)


def _history(runs: Sequence[Run], metrics: tuple[str, ...], form: str | None) -> None:
    from enginecmp_analysis.history import history, render_history

    if form not in (None, "json"):
        msg = f"--history prints a table or --json, not --{form}"
        raise UsageError(msg)
    report = history(runs, metrics)
    if form is None:
        show(render_history(report))
        return
    from enginecmp_analysis.output.export import to_json

    click.echo(to_json(report))


def _questions(promises: tuple[str, ...], price: str | None, demand: str | None, budget: str | None) -> Questions:
    """Read what is asked beyond speed.

    Raises:
        UsageError: an option is not of its form, or lacks another one.
    """
    from enginecmp_analysis.decisions.decide import Questions
    from enginecmp_analysis.decisions.prices import parse_amount_per_hour, parse_demand, read_prices
    from enginecmp_analysis.decisions.slo import parse_promises

    if (demand or budget) and not promises:
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
        promises=[promise for text in promises for promise in parse_promises(text)],
        prices=prices,
        demand_per_second=parse_demand(demand) if demand else None,
        budget_per_hour=amount,
    )
