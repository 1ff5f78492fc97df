"""`cmp compare`: whether a new run is slower than an old one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from enginecmp.cli.console import show
from enginecmp.cli.options import read_share
from enginecmp.errors import ResultsError, UsageError

if TYPE_CHECKING:
    from enginecmp.types import Manifest
    from enginecmp_analysis.gate import CompareReport, Level

REGRESSION = 3
"""Exit code of a confirmed regression, and of nothing else."""


@click.command("compare")
@click.argument("base")
@click.argument("new")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Instead of the primary one; repeatable.")
@click.option("--warning", callback=read_share, default="10%", show_default=True, help="Slowdown that is a warning.")
@click.option("--critical", callback=read_share, default="20%", show_default=True, help="Slowdown that is critical.")
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
    fail_on: str,
    allow_different: bool,
    results: str,
    junit: Path | None,
    form: str | None,
) -> int:
    """Say whether NEW is slower than BASE, and whether that is confirmed.

    BASE and NEW are run folders, folders of runs, or names given with `cmp run --save-baseline`. The exit code is 3
    for a confirmed regression only; noise and too few launches are inconclusive and exit with 0.
    """
    from enginecmp_analysis.data.load import load_runs
    from enginecmp_analysis.gate import Limits, compare_runs

    report = compare_runs(
        load_runs([_locate(base, Path(results))]),
        load_runs([_locate(new, Path(results))]),
        limits=Limits(warning, critical, cast("Level", fail_on)),
        metrics=metrics,
        allow_different=allow_different,
    )
    if junit is not None:
        from enginecmp_analysis.output.junit import to_junit

        try:
            junit.write_text(to_junit(report), encoding="utf-8")
        except OSError as error:
            msg = f"{junit}: cannot write: {error.strerror or error}"
            raise ResultsError(msg) from error
    if form == "json":
        from enginecmp_analysis.output.export import to_json

        click.echo(to_json(report))
    elif form == "markdown":
        from enginecmp_analysis.output.gate_table import gate_markdown

        click.echo(gate_markdown(report), nl=False)
    else:
        from enginecmp_analysis.output.gate_table import render_gate

        show(render_gate(report))
    return _exit_code(report)


def check_conditions(saved: Path, manifest: Manifest) -> None:
    """Refuse to measure for hours what could not be compared with the saved run afterwards.

    Args:
        saved: folder of the saved run.
        manifest: of the run that is about to start.

    Raises:
        UsageError: model, machine, driver or scenario differ.
    """
    from enginecmp_analysis.data.columns import ColumnBuilder
    from enginecmp_analysis.data.fingerprint import difference
    from enginecmp_analysis.data.load import MANIFEST, Run, read_manifest

    old, nothing = read_manifest(saved / MANIFEST), ColumnBuilder().build()
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
    from enginecmp_analysis.gate import compare_runs
    from enginecmp_analysis.output.gate_table import render_gate

    report = compare_runs(load_runs([saved]), load_runs([run]))
    for text, _ in render_gate(report):
        say(text)
    return _exit_code(report)


def _exit_code(report: CompareReport) -> int:
    return REGRESSION if report.failed else 0


def _locate(text: str, results: Path) -> Path:
    """Return the path that an argument means; what is there as a path comes before a saved name."""
    from enginecmp.baselines import find

    path = Path(text)
    # Whatever looks like a path is one, so that a missing folder is not searched among names.
    return path if path.exists() or path.name != text else find(results, text)
