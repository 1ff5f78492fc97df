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
    rows: list[tuple[str, ...]] = [("engine", "file", "perplexity", "nats a token", "mean KL", "top-1", "verdict")]
    rows += [_row(entry) for entry in entries]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    scored = [entry for entry in entries if entry.perplexity is not None]
    if scored:
        click.echo(
            f"\n{scored[0].positions} positions of the bundled text; the reference in float32: perplexity "
            f"{scored[0].reference_perplexity:.4g}.\nnats a token: what each costs more than there, ± 95 %."
        )
    agreed = {f"{e.engine} on {e.quantization}": e.greedy_agreement_tokens for e in scored}
    told = ", ".join(f"{which} {number}" for which, number in agreed.items() if number is not None)
    if told:
        click.echo(f"Greedy tokens until the text parts from the reference's (information only): {told}")
    for entry in entries:
        if entry.note:
            click.echo(f"{entry.engine} on {entry.quantization}: {entry.note}")


def _row(entry: Equivalence) -> tuple[str, ...]:
    if entry.perplexity is None:
        return entry.engine, entry.quantization, "", "", "", "", entry.verdict
    difference = "" if entry.nll_difference is None else f"{entry.nll_difference:+.4f}"
    if entry.nll_difference is not None and entry.nll_difference_high is not None:
        difference += f" ±{entry.nll_difference_high - entry.nll_difference:.4f}"
    return (
        entry.engine,
        entry.quantization,
        f"{entry.perplexity:.4g}",
        difference,
        f"{entry.mean_kl:.1e}",
        f"{entry.top1:.2f}",
        entry.verdict,
    )
