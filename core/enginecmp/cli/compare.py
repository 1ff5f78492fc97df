"""`cmp compare`: whether a new run is slower than an old one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from enginecmp.cli.console import echo_text, show
from enginecmp.cli.objects import folders_of
from enginecmp.cli.options import read_share
from enginecmp.errors import UsageError
from enginecmp.objects.address import is_address
from enginecmp.results.files import write_atomically

if TYPE_CHECKING:
    from enginecmp.format.records import Manifest
    from enginecmp_analysis.schema.regression import CompareReport, Level

REGRESSION = 3
"""Exit code of a confirmed regression, and of nothing else."""


@click.command("compare")
@click.argument("base")
@click.argument("new")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Instead of the primary one; repeatable.")
@click.option("--warning", callback=read_share, default="10%", show_default=True, help="Slowdown that is a warning.")
@click.option("--critical", callback=read_share, default="20%", show_default=True, help="Slowdown that is critical.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="METRIC=W%[,C%]",
    help="Other limits for one metric or quantile, which is compared too: ttft_seconds_p50=5%,10%; repeatable.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["warning", "critical"]),
    default="critical",
    show_default=True,
    help="Lowest confirmed level that exits with 3.",
)
@click.option("--allow-different", is_flag=True, help="Compare although model, machine, driver or scenario differ.")
@click.option("--results", default="results", show_default=True, metavar="DIR", help="Where baselines were saved.")
@click.option("--junit", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit XML as well.")
@click.option("--json", "form", flag_value="json", help="Print JSON (schema enginecmp-compare/1).")
@click.option("--markdown", "form", flag_value="markdown", help="Print Markdown, for the summary of a CI job.")
def command(
    base: str,
    new: str,
    metrics: tuple[str, ...],
    warning: float,
    critical: float,
    limits: tuple[str, ...],
    fail_on: str,
    allow_different: bool,
    results: str,
    junit: Path | None,
    form: str | None,
) -> int:
    """Say whether NEW is slower than BASE, and whether that is confirmed.

    BASE and NEW are run folders, folders of runs, addresses s3://BUCKET/PREFIX, or names given with `cmp run
    --save-baseline`. The exit code is 3 for a confirmed regression only; noise and too few launches are inconclusive
    and exit with 0.
    """
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.data.metrics import find_metric
    from enginecmp_analysis.decisions.limits import Limits, parse_limit
    from enginecmp_analysis.decisions.regression import compare_runs

    level = cast("Level", fail_on)
    own = dict(parse_limit(text, level) for text in limits)
    metrics = tuple(find_metric(name).name for name in metrics)
    report = compare_runs(
        load_runs(_locate(base, Path(results))),
        load_runs(_locate(new, Path(results))),
        limits=Limits(warning, critical, level),
        metrics=metrics,
        limits_of=own,
        allow_different=allow_different,
    )
    if junit is not None:
        from enginecmp_analysis.render.junit import to_junit

        write_atomically(junit, to_junit(report).encode(), "name another file with --junit")
    if form == "json":
        from enginecmp_analysis.render.export import to_json

        echo_text(to_json(report))
    elif form == "markdown":
        from enginecmp_analysis.render.regression_table import regression_markdown

        echo_text(regression_markdown(report))
    else:
        from enginecmp_analysis.render.regression_table import render_regression

        show(render_regression(report))
    return _exit_code(report)


def check_conditions(saved: Path, manifest: Manifest) -> None:
    """Refuse to measure for hours what could not be compared with the saved run afterwards.

    Args:
        saved: folder of the saved run.
        manifest: of the run that is about to start.

    Raises:
        UsageError: model, machine, driver or scenario differ.
    """
    from enginecmp.format.readers import read_manifest
    from enginecmp_analysis.data.columns import ColumnBuilder
    from enginecmp_analysis.data.fingerprint import difference
    from enginecmp_analysis.data.load import Run

    old, nothing = read_manifest(saved), ColumnBuilder().build()
    # Set when the run starts; the texts come with the program.
    manifest.scenario["prompts_sha256"] = old.scenario.get("prompts_sha256")
    gap = difference(Run(old, nothing), Run(manifest, nothing))
    if gap.conditions:
        what = "; ".join(gap.conditions[:3])
        msg = f"--baseline: run {old.run_id} was made under other conditions: {what}; save a new baseline under these"
        raise UsageError(msg)


def compare_with_saved(saved: Path, run: Path, say: Callable[[str], None]) -> int:
    """Compare a run that has just ended with a saved one, tell the outcome, and return the exit code.

    Raises:
        ResultsError: the runs were made under different conditions.
    """
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.decisions.regression import compare_runs
    from enginecmp_analysis.render.regression_table import render_regression

    report = compare_runs(load_runs([saved]), load_runs([run]))
    for text, _ in render_regression(report):
        say(text)
    return _exit_code(report)


def _exit_code(report: CompareReport) -> int:
    return REGRESSION if report.failed else 0


def _locate(text: str, results: Path) -> list[str | Path]:
    """Return the paths that an argument means; what is there as a path comes before a saved name."""
    from enginecmp.results.baselines import find

    if is_address(text):
        return folders_of([text])
    path = Path(text)
    # Whatever looks like a path is one, so that a missing folder is not searched among names.
    return [path if path.exists() or path.name != text else find(results, text)]
