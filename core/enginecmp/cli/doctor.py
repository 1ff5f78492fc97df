"""`cmp doctor`: what will spoil a measurement here, and what fixes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginecmp.cli.console import echo, print_json, table

if TYPE_CHECKING:
    from enginecmp.doctor import Finding

_STYLES = {"ok": "green", "note": "yellow", "warning": "red"}


@click.command("doctor", short_help="Say what will spoil a measurement.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(out: Path, as_json: bool) -> None:
    """Look at the machine: what disturbs measurements, why, and the command that fixes each.

    Reads and changes nothing. A note is worth knowing when numbers are read; a warning is worth fixing before.
    The same findings stand in every run's manifest.
    """
    from enginecmp.doctor import examine
    from enginecmp.telemetry.idle import measure_busyness

    findings = examine(out, measure_busyness())
    if as_json:
        print_json({"findings": findings})
        return
    _print_table(findings)


def _print_table(findings: list[Finding]) -> None:
    table(("check", "", "here"), [(f.check, (f.severity, _STYLES[f.severity]), f.found) for f in findings])
    for severity in ("warning", "note"):
        for finding in findings:
            if finding.severity == severity:
                echo()
                echo(f"{finding.check}: {finding.why}")
                echo(f"  fix: {finding.fix}")
