"""`cmp doctor`: what will spoil a measurement here, and what mends it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from enginecmp.doctor import Finding

_STYLES = {"ok": "green", "note": "yellow", "warning": "red"}


@click.command("doctor", short_help="Say what will spoil a measurement.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(out: Path, as_json: bool) -> None:
    """Look at the machine: what disturbs measurements, why, and the command that mends each.

    Reads and changes nothing. A note is worth knowing when numbers are read; a warning is worth mending before.
    The same findings stand in every run's manifest.
    """
    from enginecmp.doctor import examine
    from enginecmp.telemetry.idle import measure_busyness

    findings = examine(out, measure_busyness())
    if as_json:
        document = msgspec.json.encode({"findings": findings})
        sys.stdout.buffer.write(msgspec.json.format(document, indent=2) + b"\n")
        return
    _print_table(findings)


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "", "here"):
        table.add_column(heading)
    for finding in findings:
        table.add_row(finding.check, f"[{_STYLES[finding.severity]}]{finding.severity}[/]", finding.found)
    console.print(table)
    for severity in ("warning", "note"):
        for finding in findings:
            if finding.severity == severity:
                advice = f"\n{finding.check}: {finding.why}\n  mend: {finding.mend}"
                console.print(advice, markup=False, soft_wrap=True)
