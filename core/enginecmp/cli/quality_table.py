"""What the gate found of each engine and file: the outcome of `cmp run --quality-only`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from enginecmp.cli.console import columns, echo, print_json
from enginecmp.errors import CmpError
from enginecmp.format.readers import read_manifest
from enginecmp.format.records import NOT_COMPARABLE, Equivalence
from enginecmp_analysis.render.decision_table import proven_on, quality_values


def show_quality(folder: Path, as_json: bool) -> None:
    """Print the equivalence entries of a run as a table or as JSON.

    Raises:
        CmpError: an engine is not comparable, so that the gate alone can be a step of somebody's pipeline.
    """
    entries = read_manifest(folder).equivalence
    if as_json:
        found = {"folder": str(folder), "equivalence": entries}
        print_json(found)
    else:
        _print(entries)
    if failed := dict.fromkeys(entry.engine for entry in entries if entry.verdict == NOT_COMPARABLE):
        msg = f"not comparable: {', '.join(failed)}; the numbers are above and in {folder}"
        raise CmpError(msg)


def _print(entries: Sequence[Equivalence]) -> None:
    rows: list[tuple[str, ...]] = []
    rows.append(("engine", "file", "mean KL", "top-1", "perplexity", "ΔNLL (nats/token)", "greedy", "verdict"))
    rows += [(entry.engine, *quality_values(entry), f"{entry.verdict}{proven_on(entry)}") for entry in entries]
    columns(rows)
    scored = [entry for entry in entries if entry.perplexity is not None]
    if scored:
        echo()
        echo(
            f"{scored[0].positions} positions of the bundled text; the reference in float32: perplexity "
            f"{scored[0].reference_perplexity:.4g}."
        )
        echo("ΔNLL: negative log-likelihood beyond the reference's, with its 95 % CI.")
        echo("greedy: tokens until the text parts from the reference's, information only.")
    for entry in entries:
        if entry.note:
            echo(f"{entry.engine} on {entry.quantization}: {entry.note}")
