"""`cmp selftest`: does this machine, with this tool, call equal things equal?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginecmp.cli.console import echo, print_json
from enginecmp.errors import CmpError
from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.run.options import RunOptions

if TYPE_CHECKING:
    from enginecmp.machine.noise import NoiseFloor


@click.command("selftest")
@click.option("--aa", "engine", required=True, metavar="ENGINE", help="Compare this engine with itself.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, show_default=True, help="How many A/A runs.")
@click.option("--scenario", default="sustained", show_default=True, help="A name or a TOML file.")
@click.option("--profile", help="How much of the scenario.  [default: quick, or the only one that a file has]")
@click.option("--model", help="A catalog name or a GGUF file.")
@click.option("--threads", default="auto", show_default=True, help="Compute threads.")
@click.option(
    "--blocks", type=click.IntRange(min=LAUNCHES_NEEDED), help=f"Launches of each label; at least {LAUNCHES_NEEDED}."
)
@click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="An option of the engine, for both labels.")
@click.option("--out", default="results-aa", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print the noise floor as JSON.")
def command(
    engine: str,
    repeat: int,
    scenario: str,
    profile: str | None,
    model: str | None,
    threads: str,
    blocks: int | None,
    options: tuple[str, ...],
    out: Path,
    as_json: bool,
) -> int:
    """Run one engine under two labels through the whole pipeline and publish what differed: the noise floor.

    Later verdicts on this machine quote it. At a level of 5 %, one A/A run in twenty calls the labels different by
    chance; with --repeat, more false alarms than chance allows (99 % binomial limit) fail the test.
    """
    from enginecmp.machine.noise import publish

    asked = RunOptions(
        engines=f"a={engine},b={engine}",
        baseline="a",
        no_gate=True,
        scenario=scenario,
        profile=profile,
        usual_profile="quick",
        model=model,
        threads=threads,
        blocks=blocks,
        options=tuple(f"{label}.{option}" for option in options for label in "ab"),
        out=out,
    )
    floor = _measure(asked, engine, repeat)
    publish(floor)
    if as_json:
        print_json(floor)
    else:
        echo(floor.describe())
        echo(f"false alarms: {floor.false_alarms} of {floor.runs}, {_allowed(floor.runs)} allowed")
    return 1 if floor.false_alarms > _allowed(floor.runs) else 0


def _measure(asked: RunOptions, engine: str, repeat: int) -> NoiseFloor:
    from enginecmp.cli.measure import measure, prepare, terminated_like_interrupted
    from enginecmp.machine.noise import NoiseFloor, machine_of
    from enginecmp.run.prepare import find_model
    from enginecmp_analysis.analyse import analyse
    from enginecmp_analysis.data.load import load_runs

    false_alarms = 0
    model = find_model(asked.model)
    for _ in range(repeat):
        with terminated_like_interrupted():
            folder = measure(asked, prepare(asked, model))
        runs = load_runs([str(folder)])
        report = analyse(runs).report
        primary = [comparison for comparison in report.comparisons if comparison.primary]
        if not primary or any(comparison.verdict == "withheld" for comparison in primary):
            msg = (
                f"selftest: {folder} has too few undisturbed launches for a verdict "
                f"({'; '.join(report.warnings) or 'none measured'}); try again on an idle machine"
            )
            raise CmpError(msg)
        false_alarms += any(comparison.verdict in ("faster", "slower") for comparison in primary)
    manifest = runs[0].manifest
    widest = max(primary, key=lambda comparison: comparison.ci_high / comparison.ci_low)
    spreads = [s.cv_launches for s in report.summaries if (s.cell, s.metric) == (widest.cell, widest.metric)]
    return NoiseFloor(
        machine=machine_of(manifest.environment),
        engine=engine,
        version=manifest.engines[0].version,
        scenario=f"{manifest.scenario['name']}/{manifest.scenario['profile']}",
        metric=widest.metric,
        ratio=widest.ratio,
        ci_low=widest.ci_low,
        ci_high=widest.ci_high,
        cv_launches=max(spreads),
        n_launches=widest.n_launches,
        runs=repeat,
        false_alarms=false_alarms,
        measured_utc=manifest.created_utc,
    )


def _allowed(runs: int) -> int:
    """Return the 99 % quantile of Binomial(runs, 0.05): more false alarms than that are no chance."""
    from scipy.stats import binom

    return int(binom.ppf(0.99, runs, 0.05))
