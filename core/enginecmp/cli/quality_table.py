"""What the gate found of each engine and file: the outcome of `cmp run --quality-only`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from enginecmp.equivalence import NOT_COMPARABLE
from enginecmp.errors import CmpError
from enginecmp.results import read_manifest
from enginecmp.types import Equivalence
from enginecmp_analysis.output.decision_table import quality_values


def show_quality(folder: Path, as_json: bool) -> None:
    """Print the equivalence entries of a run as a table or as JSON.

    Raises:
        CmpError: an engine is not comparable, so that the gate alone can be a step of somebody's pipeline.
    """
    entries = read_manifest(folder).equivalence
    if as_json:
        found = {"folder": str(folder), "equivalence": entries}
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    else:
        _print(entries)
    if failed := dict.fromkeys(entry.engine for entry in entries if entry.verdict == NOT_COMPARABLE):
        msg = f"not comparable: {', '.join(failed)}; the numbers are above and in {folder}"
        raise CmpError(msg)


def _print(entries: Sequence[Equivalence]) -> None:
    rows: list[tuple[str, ...]] = []
    rows.append(("engine", "file", "mean KL", "top-1", "perplexity", "nats worse [95 % CI]", "greedy", "verdict"))
    rows += [(entry.engine, *quality_values(entry), entry.verdict) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    scored = [entry for entry in entries if entry.perplexity is not None]
    if scored:
        click.echo(
            f"\n{scored[0].positions} positions of the bundled text; the reference in float32: perplexity "
            f"{scored[0].reference_perplexity:.4g}.\nnats worse: what a token costs more than there.\n"
            "greedy: tokens until the text parts from the reference's, information only."
        )
    for entry in entries:
        if entry.note:
            click.echo(f"{entry.engine} on {entry.quantization}: {entry.note}")
