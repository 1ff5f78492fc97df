"""`cmp guide`: which engine with which settings for which use, in words, with the numbers behind them."""

from __future__ import annotations

from pathlib import Path

import click

from enginecmp.cli.console import echo_text, say
from enginecmp.cli.objects import folders_of
from enginecmp.cli.options import read_share
from enginecmp.cli.questions import asking, read_questions
from enginecmp.results.files import write_atomically


@click.command("guide")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the Markdown there.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write one HTML file as well.")
@click.option("--baseline", metavar="ENGINE", help="Compare with this engine instead of the run's own baseline.")
@click.option(
    "--margin", callback=read_share, default="3%", show_default=True, help="Differences below this are equivalent."
)
@click.option("--include-flagged", is_flag=True, help="Count flagged samples too; no verdicts then.")
@asking
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema enginecmp-guide/1) instead of Markdown.")
def command(
    paths: tuple[str, ...],
    output: Path | None,
    html: Path | None,
    baseline: str | None,
    margin: float,
    include_flagged: bool,
    objectives: tuple[str, ...],
    price: str | None,
    demand: str | None,
    budget: str | None,
    targets: Path | None,
    as_json: bool,
) -> int:
    """Write a deployment guide from runs: which engine with which settings for which use, and what is open.

    PATHS are run folders or folders of runs (default: results), s3://BUCKET/PREFIX among them. Every sentence has its
    numbers, their interval and the run it rests on; where the data do not decide, it says so and names the command
    that would. Markdown on stdout, unless --output or --html name a file.

    With --expect the exit code is 3 when a target of that file is refuted.
    """
    from enginecmp.cli.stats import exit_code
    from enginecmp.machine.noise import described
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.decisions.decide import decide_more
    from enginecmp_analysis.guide.build import build
    from enginecmp_analysis.guide.pages import to_html, to_markdown
    from enginecmp_analysis.judge.judge import Options
    from enginecmp_analysis.render.export import to_json

    questions = read_questions(objectives, price, demand, budget, targets)
    options = Options(baseline=baseline, margin=margin, include_flagged=include_flagged)
    runs = load_runs(folders_of(paths or ("results",)))
    analysis = analyse(runs, options)
    analysis.report.warnings += described(run.manifest.environment for run in runs)
    decide_more(analysis, options, questions)
    guide = build(analysis, questions)
    written = {output: to_markdown, html: to_html}
    for path, form in written.items():
        if path is not None:
            write_atomically(path, form(guide).encode(), "name another file")
            say(f"{path}: written")
    if as_json:
        echo_text(to_json(guide))
    elif output is None and html is None:
        echo_text(to_markdown(guide))
    return exit_code(analysis)
