"""`cmp report`: verdicts and pictures in one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from enginecmp.cli.conflicts import check_report
from enginecmp.cli.console import say
from enginecmp.cli.objects import folders_of
from enginecmp.cli.options import read_share
from enginecmp.results.files import write_atomically


@click.command("report")
@click.argument("paths", nargs=-1, type=click.Path())
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="Written."
)
@click.option(
    "--site", type=click.Path(path_type=Path), metavar="DIR", help="Write a static site over all runs there instead."
)
@click.option("--baseline", metavar="ENGINE", help="Compare with this engine instead of the run's own baseline.")
@click.option("--pairs", is_flag=True, help="Compare every engine with every other one.")
@click.option(
    "--margin", callback=read_share, default="3%", show_default=True, help="Differences below this are equivalent."
)
@click.option("--include-flagged", is_flag=True, help="Count flagged samples too; no verdicts then.")
@click.pass_context
def command(
    context: click.Context,
    /,
    paths: tuple[str, ...],
    output: Path,
    site: Path | None,
    baseline: str | None,
    pairs: bool,
    margin: float,
    include_flagged: bool,
) -> None:
    """Draw what `cmp stats` says, in one HTML file that needs no network.

    PATHS are run folders or folders of runs (default: results), s3://BUCKET/PREFIX among them.

    With --site an index of all runs, a leaderboard for every model, machine and scenario, and the report and the data
    of each run, as files that any web server can show, or a browser without one.
    """
    check_report(context)
    from enginecmp.machine.noise import described
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.decisions.decide import Questions, decide_more
    from enginecmp_analysis.judge.judge import Options
    from enginecmp_analysis.render.pictures.page import to_page

    options = Options(baseline=baseline, pairs=pairs, margin=margin, include_flagged=include_flagged)
    if site is not None:
        from enginecmp.cli.site import write_site

        write_site(folders_of(paths or ("results",)), site, options)
        return
    runs = load_runs(folders_of(paths or ("results",)))
    analysis = analyse(runs, options)
    analysis.report.warnings += described(run.manifest.environment for run in runs)
    decide_more(analysis, options, Questions())
    write_atomically(output, to_page(analysis, margin).encode(), "name another file with --output")
    say(f"{output}: open it in a browser")
