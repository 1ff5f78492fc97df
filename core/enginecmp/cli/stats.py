"""`cmp stats`: verdicts from runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginecmp.cli.conflicts import check_stats
from enginecmp.cli.console import echo_text, show
from enginecmp.cli.objects import folders_of
from enginecmp.cli.options import read_share
from enginecmp.cli.questions import asking, read_questions
from enginecmp.errors import UsageError
from enginecmp.format.text import command_line, operand

if TYPE_CHECKING:
    from enginecmp_analysis.data.group import Analysis, GroupResult

REFUTED = 3
"""Exit code where a target of `--expect` is refuted, as of a confirmed regression in `cmp compare`."""


@click.command("stats")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--baseline", metavar="ENGINE", help="Compare with this engine instead of the run's own baseline.")
@click.option("--all", "everything", is_flag=True, help="Show every metric, quality, load and all notes.")
@click.option("--pairs", is_flag=True, help="Compare every engine with every other one.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show only this metric; repeatable.")
@click.option(
    "--margin", callback=read_share, default="3%", show_default=True, help="Differences below this are equivalent."
)
@click.option("--quantiles", is_flag=True, help="Compare p50, p90, p95 and p99 of launches too.")
@click.option("--details", is_flag=True, help="Show what other methods say, and effect sizes of single requests.")
@asking
@click.option("--plan", "planning", is_flag=True, help="Say how many blocks and requests the next run takes.")
@click.option(
    "--detect", callback=read_share, default="2%", show_default=True, help="Difference that --plan must find."
)
@click.option("--history", "over_time", is_flag=True, help="Follow the primary metric (or --metric) over runs.")
@click.option("--warmup-floor", type=click.IntRange(min=0), default=0, help="Cut at least so many requests a launch.")
@click.option("--include-flagged", is_flag=True, help="Count flagged samples too; no verdicts then.")
@click.option("--json", "form", flag_value="json", help="Print JSON (schema enginecmp-stats/1).")
@click.option("--csv", "form", flag_value="csv", help="Print comparisons and means as CSV.")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown tables.")
@click.pass_context
def command(
    context: click.Context,
    /,
    paths: tuple[str, ...],
    baseline: str | None,
    everything: bool,
    pairs: bool,
    metrics: tuple[str, ...],
    margin: float,
    quantiles: bool,
    details: bool,
    objectives: tuple[str, ...],
    price: str | None,
    demand: str | None,
    budget: str | None,
    targets: Path | None,
    planning: bool,
    detect: float,
    over_time: bool,
    warmup_floor: int,
    include_flagged: bool,
    form: str | None,
) -> int:
    """Say which engine is faster, by how much and how sure.

    PATHS are run folders or folders of runs (default: results), s3://BUCKET/PREFIX among them. Runs of another model,
    machine or engine build are never pooled.

    The exit code is 0 whatever the verdicts are; with --expect it is 3 when a target of that file is refuted, which
    open targets and those not measured are not.
    """
    check_stats(context)
    from enginecmp.machine.noise import described
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.data.metrics import find_metric
    from enginecmp_analysis.decisions.decide import decide_more
    from enginecmp_analysis.judge.judge import Options

    metrics = tuple(find_metric(name).name for name in metrics)
    if over_time:
        _history(folders_of(paths or ("results",)), metrics, form)
        return 0
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
    questions = read_questions(objectives, price, demand, budget, targets)
    runs = load_runs(folders_of(paths or ("results",)))
    analysis = analyse(runs, options)
    analysis.report.warnings += described(run.manifest.environment for run in runs)
    decide_more(analysis, options, questions)
    if planning:
        from enginecmp_analysis.data.asked import kept_command
        from enginecmp_analysis.judge.plan import plan

        analysis.report.plans = []
        for group in analysis.groups:
            found = plan(group, options, detect)
            if found is not None:
                found.command = command_line(kept_command(group.runs[-1]))
                analysis.report.plans.append(found)
        if not analysis.report.plans:
            analysis.report.warnings.append("no plan: it takes two engines with two launches each to know the spread")
    _print(analysis, form, paths, first=not (everything or pairs or metrics or quantiles or details or include_flagged))
    return exit_code(analysis)


def exit_code(analysis: Analysis) -> int:
    """Return 3 where a target that was asked for is refuted, else 0."""
    return REFUTED if any(row.asked and row.status == "refuted" for row in analysis.report.expectations or []) else 0


def _print(analysis: Analysis, form: str | None, paths: tuple[str, ...], *, first: bool) -> None:
    """Print the report in one form; as text the first screen, or all that was asked for."""
    from enginecmp_analysis.render.export import to_csv, to_json, to_markdown

    if form == "json":
        echo_text(to_json(analysis.report))
    elif form == "csv":
        echo_text(to_csv(analysis.report))
    elif form == "markdown":
        echo_text(to_markdown(analysis))
    elif first:
        from enginecmp_analysis.render.first_screen import first_screen
        from enginecmp_analysis.render.table import asked_for

        shown = command_line(["cmp", "stats", *map(operand, paths)])
        show([*first_screen(analysis, shown, shutil.get_terminal_size().columns), *asked_for(analysis.report)])
    else:
        from enginecmp_analysis.render.table import render

        show(render(analysis))


def _history(paths: Sequence[str | Path], metrics: tuple[str, ...], form: str | None) -> None:
    from enginecmp_analysis.judge.history import history

    if form not in (None, "json"):
        msg = f"--history prints a table or --json, not --{form}"
        raise UsageError(msg)
    notes: list[str] = []
    report = history(_each_group(paths, metrics, notes), metrics)
    report.warnings += notes
    if form is None:
        from enginecmp_analysis.render.history_table import render_history

        show(render_history(report))
        return
    from enginecmp_analysis.render.export import to_json

    echo_text(to_json(report))


def _each_group(paths: Sequence[str | Path], metrics: tuple[str, ...], notes: list[str]) -> Iterator[GroupResult]:
    """Yield runs one by one, each without its requests, so that thousands of them fit."""
    from enginecmp.cli.each_run import each_run
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.lean import lean
    from enginecmp_analysis.data.load import load_run
    from enginecmp_analysis.data.store import is_store, read_store

    stores = [Path(path) for path in paths if is_store(Path(path))]
    seen: dict[object, str] = {}
    for store in stores:
        for group in read_store(store, metrics):
            seen[group.runs[0].manifest.run_id] = str(store)
            yield group
    others = [path for path in paths if Path(path) not in stores]
    folders, left_out = each_run(others, strict=True) if others else ([], [])
    notes += left_out
    for folder in folders:
        run = load_run(folder)
        columns = run.columns
        ends = (len(columns), columns.start_ns[0].item(), columns.end_ns[-1].item()) if len(columns) else ()
        # The same stamps under another name are a copy.
        told = [seen[key] for key in (run.manifest.run_id, ends) if key and key in seen]
        if told:
            notes.append(f"{folder} is left out: it holds the same run as {told[0]}")
            continue
        seen |= {run.manifest.run_id: str(folder), ends: str(folder)}
        (group,) = analyse([run]).groups
        yield lean(group, metrics or (group.context.primary_metric,))
