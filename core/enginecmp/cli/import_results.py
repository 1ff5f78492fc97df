"""`cmp import`: results of other tools into our format."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginecmp.cli.console import echo, print_json
from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp.format.records import Cell
from enginecmp.format.text import command_line, operand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from enginecmp.format.records import Manifest
    from enginecmp.importers.folder import Source
    from enginecmp.importers.parts import Part

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
@click.option("--from", "tool", metavar="TOOL", help="Tool that wrote the files; else found by the keys.")
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
    """Bring results of other tools into one run of this format.

    Read are files of llama-bench, vllm, sglang, aiperf, genai-perf, guidellm, inference-perf and optimum-benchmark.
    Every file is one launch of the engine LABEL; give a label several files to have several launches. What a tool
    does not tell is absent. Example: cmp import vllm=a1.json vllm=a2.json sglang=b1.json sglang=b2.json
    """
    from enginecmp.importers import read_file
    from enginecmp.importers.folder import Choices, Source, select, write_run

    choices = Choices(only=_settings(only), model=model, cell=cell, baseline=baseline, paired=paired)
    sources = [Source(label, path, *read_file(path, tool)) for label, path in map(_labelled, files)]
    sources = select(sources, choices)
    folder, manifest = write_run(sources, choices, out)
    _read_back(folder)
    told = _told(folder, manifest, sources)
    if as_json:
        print_json(told)
        return
    for engine in told["engines"]:
        counts = ", ".join(f"{count} {what}" for what, count in engine["requests"].items() if count)
        launches = "1 launch" if engine["launches"] == 1 else f"{engine['launches']} launches"
        requests = f"requests: {counts}" if counts else "averages only"
        echo(f"{engine['label']}: {launches} from {engine['tool']}, {requests}")
    for note in told["notes"]:
        echo(f"note: {note}")
    echo(f"{folder}; next: {command_line(['cmp', 'stats', operand(folder)])}")


def _read_back(folder: Path) -> None:
    """Hold what was written to the rules of its reader, and leave nothing behind that it refuses.

    Raises:
        ResultsError: it refuses it.
    """
    from enginecmp_analysis.data.load import load_run

    try:
        left_out = load_run(folder).warnings
    except ResultsError as error:
        left_out = (str(error),)
    if left_out:
        shutil.rmtree(folder)
        msg = f"the files hold what no run may: {left_out[0]}"
        raise ResultsError(msg)


def _labelled(argument: str) -> tuple[str, Path]:
    label, equals, path = argument.partition("=")
    if not equals or not path or not _LABEL.fullmatch(label):
        example = command_line([f"vllm={path or 'FILE'}"])
        msg = f"expected LABEL=FILE, the engine's label and the file, got '{argument}'; e.g. {example}"
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
        if outside := counts["warmup"]:
            notes.append(f"{engine.name}: {outside} requests of warm-up and cool-down are not compared")
        if not any(_measured(part) for part in parts):
            notes.append(f"{engine.name}: no request that was measured succeeded")
        said = dict.fromkeys(note for part in parts for note in part.notes)
        notes += [f"{engine.name}: {note}" for note in said]
        notes += _given_twice(engine.name, [source.path for source in mine])
        if averaged := sum(any(part.averages for part in launch) for launch in launches):
            notes.append(
                f"{engine.name}: {averaged} of {len(launches)} launches rest on averages of the tool: no quantiles, "
                f"and compared from {LAUNCHES_NEEDED} launches on"
            )
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


def _measured(part: Part) -> bool:
    return part.averages is not None or any(r.status == "ok" and r.phase == "measure" for r in part.requests)


def _given_twice(label: str, paths: Sequence[Path]) -> list[str]:
    """Return a note for files of a label with the same content: one measurement is no two launches."""
    first: dict[bytes, Path] = {}
    copies = []
    for path in paths:
        digest = sha256(path.read_bytes()).digest()
        if first.setdefault(digest, path) is not path:
            copies.append(f"{path} is {first[digest]} again")
    same = "; ".join(dict.fromkeys(copies))
    return [f"{label}: {same}: one measurement counts as {len(copies) + 1} launches"] if copies else []
