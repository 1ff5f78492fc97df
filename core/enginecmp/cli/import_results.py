"""`cmp import`: results of other tools into our format."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginecmp.errors import UsageError
from enginecmp.types import Cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginecmp.importers.folder import Source
    from enginecmp.types import Manifest

_LABEL = re.compile(r"[A-Za-z0-9_.-]+")


def _cell(ctx: click.Context, param: click.Parameter, value: str | None) -> Cell | None:
    """Read a cell written as PROMPT:OUTPUT:CONCURRENCY."""
    if value is None:
        return None
    parts = value.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        msg = f"expected PROMPT:OUTPUT:CONCURRENCY like 512:128:8, got '{value}'"
        raise click.BadParameter(msg, ctx, param)
    prompt, output, concurrency = map(int, parts)
    return Cell(prompt, output, concurrency)


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="LABEL=FILE...")
@click.option("--from", "tool", metavar="TOOL", help="llama-bench, vllm, aiperf or guidellm; else found by the keys.")
@click.option("--model", metavar="NAME", help="Name of the model, where files do not tell or call it differently.")
@click.option("--only", "only", multiple=True, metavar="KEY=VALUE", help="Take only tests of this setting; repeatable.")
@click.option("--cell", callback=_cell, metavar="P:O:C", help="Put all requests into this cell: prompt, output, conc.")
@click.option("--baseline", metavar="LABEL", help="Compare with this label; default: the first.")
@click.option("--paired", is_flag=True, help="The i-th files of all labels were measured side by side.")
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as JSON.")
def command(
    files: tuple[str, ...],
    tool: str | None,
    model: str | None,
    only: tuple[str, ...],
    cell: Cell | None,
    baseline: str | None,
    paired: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Bring results of llama-bench, vLLM, aiperf and guidellm into one run of this format.

    Every file is one launch of the engine LABEL; give a label several files to have several launches. What a tool
    does not tell is absent. Example: cmp import vllm=a1.json vllm=a2.json sglang=b1.json sglang=b2.json
    """
    from enginecmp.importers import read_file
    from enginecmp.importers.folder import Choices, Source, select, write_run

    choices = Choices(only=_settings(only), model=model, cell=cell, baseline=baseline, paired=paired)
    sources = [Source(label, path, *read_file(path, tool)) for label, path in map(_labelled, files)]
    sources = select(sources, choices)
    folder, manifest = write_run(sources, choices, out)
    told = _told(folder, manifest, sources)
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    for engine in told["engines"]:
        counts = ", ".join(f"{count} {what}" for what, count in engine["requests"].items() if count)
        launches = "1 launch" if engine["launches"] == 1 else f"{engine['launches']} launches"
        click.echo(f"{engine['label']}: {launches} from {engine['tool']}, requests: {counts}")
    for note in told["notes"]:
        click.echo(f"note: {note}")
    click.echo(f"{folder}; next: cmp stats {folder}")


def _labelled(argument: str) -> tuple[str, Path]:
    label, equals, path = argument.partition("=")
    if not equals or not path or not _LABEL.fullmatch(label):
        msg = f"expected LABEL=FILE, the engine's label and the file, got '{argument}'; e.g. vllm={argument}"
        raise UsageError(msg)
    return label, Path(path)


def _settings(only: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in only]
    for text, (key, equals, _) in zip(only, pairs, strict=True):
        if not key or not equals:
            msg = f"--only: expected KEY=VALUE like n_depth=0, got '{text}'"
            raise UsageError(msg)
    return {key: value for key, _, value in pairs}


def _told(folder: Path, manifest: Manifest, sources: Sequence[Source]) -> dict[str, Any]:
    """Return what was imported, and what the reader should know."""
    engines = []
    notes = []
    cells: dict[str, set[Cell]] = {}
    for engine in manifest.engines:
        mine = [source for source in sources if source.label == engine.name]
        launches = [launch for source in mine for launch in source.launches]
        parts = [part for launch in launches for part in launch]
        cells[engine.name] = {part.cell for part in parts}
        counts = Counter(
            request.status if request.phase == "measure" else request.phase
            for part in parts
            for request in part.requests
        )
        left_out = sum(part.left_out for part in parts)
        engines.append(
            {
                "label": engine.name,
                "tool": "+".join(sorted({source.tool for source in mine})),
                "files": [str(source.path) for source in mine],
                "version": engine.version,
                "launches": len(launches),
                "requests": dict(counts) | {"left out": left_out},
                "cells": [
                    [c.prompt_tokens, c.output_tokens, c.concurrency] for c in sorted(cells[engine.name], key=str)
                ],
            }
        )
        if left_out:
            notes.append(f"{engine.name}: {left_out} requests that the end of the test cut off are left out")
    for label, mine_cells in cells.items():
        if label != manifest.baseline and not mine_cells & cells[manifest.baseline]:
            notes.append(
                f"{label} shares no cell with {manifest.baseline}, so nothing is compared; if they did the same work, "
                "put both into one with --cell PROMPT:OUTPUT:CONCURRENCY"
            )
    if len({source.tool for source in sources}) > 1:
        notes.append("the files are of different tools, which do not all begin and end a metric at the same place")
    return {
        "folder": str(folder),
        "run_id": manifest.run_id,
        "model": manifest.model.name,
        "source_tool": manifest.scenario["source_tool"],
        "source_version": manifest.scenario["source_version"],
        "engines": engines,
        "notes": notes,
    }
