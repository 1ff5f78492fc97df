"""The top of the page: the sentence and the ranking of `cmp stats`, and what they were measured with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from enginecmp.format.text import command_line
from enginecmp_analysis.data.asked import kept_command
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.group import Analysis, Context, GroupResult
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import verdict_word
from enginecmp_analysis.render.escape import for_html
from enginecmp_analysis.render.first_screen import nothing
from enginecmp_analysis.render.layout import show_count, three_digits
from enginecmp_analysis.render.pictures.elements import engine_name, table
from enginecmp_analysis.render.pictures.picture import metric_title
from enginecmp_analysis.render.ranking_rows import MOST_TABLES, footnote, overview_rows, ranking_rows
from enginecmp_analysis.render.sentence import answers
from enginecmp_analysis.schema.stats import Ranking

MOST_WARNINGS = 3
"""Of the first screen; the others are folded."""

UNBROKEN = 30
"""Characters of a word that fits the line of a small screen."""


def answer(context: Context, analysis: Analysis) -> Iterator[str]:
    """Yield a scenario's sentences and its ranking."""
    rankings = [ranking for ranking in analysis.report.rankings if ranking.scenario == context.scenario]
    yield from (f'<p class="answer bad">{for_html(note)}</p>' for note in context.unmeasured)
    if not rankings:
        yield f'<p class="answer">{for_html(nothing(analysis))}</p>'
        return
    for text in answers(rankings, analysis.report, context):
        yield f'<p class="answer">{for_html(text)}</p>'
    yield from ranking_tables(rankings, context)


def ranking_tables(rankings: Sequence[Ranking], context: Context) -> Iterator[str]:
    """Yield a table a cell, or one of all cells where they are many."""
    engines = list(context.engines)
    if len(rankings) > MOST_TABLES:
        yield from _overview(rankings)
        return
    for ranking in rankings:
        if len(rankings) > 1:
            yield f"<h3>{for_html(cell_name(ranking.cell))}</h3>"
        yield from _ranking(ranking, context, engines)


def _ranking(ranking: Ranking, context: Context, engines: Sequence[str]) -> Iterator[str]:
    unit, rows = ranking_rows(ranking, context)
    unit = "" if unit == "value" else unit
    good, bad = (verdict_word(ranking.metric, verdict) for verdict in ("faster", "slower"))
    tones = {"first": "good", "tied": "good", good: "good", bad: "bad"}
    cells = [
        (
            f"{row.rank}{f' {row.letters}' if row.letters else ''}",
            engine_name(row.engine, engines),
            (f'<b>{row.value}</b><span class="unit"> {unit}</span>', ranked.mean),
            (row.ratio, ranked.ratio_to_best),
            for_html(row.gate),
            f'<span class="{tones.get(row.word, "open")}">{row.word}</span>',
        )
        for row, ranked in zip(rows, ranking.rows, strict=True)
    ]
    value = metric_title(ranking.metric) + (f", {unit}" if unit else "")
    heads = ("rank", "engine", value, "of the best", "gate", "verdict")
    yield from table(heads, cells, "ranking")
    yield f'<p class="quiet">{for_html(footnote(ranking))}</p>'


def _overview(rankings: Sequence[Ranking]) -> Iterator[str]:
    unit, rows = overview_rows(rankings)
    heads = ("cell", f"first, {unit}", "first", "the others, of the first")
    cells = []
    for row, ranking in zip(rows, rankings, strict=True):
        value = f'<b>{row.value}</b><span class="unit"> {unit}</span>', ranking.rows[0].mean
        cells.append((for_html(row.cell), value, for_html(row.first), for_html(row.others)))
    # Where nobody was told from the first, there are no others.
    columns = len(heads) if any(row.others for row in rows) else len(heads) - 1
    yield from table(heads[:columns], [row[:columns] for row in cells], "overview")


def warnings(analysis: Analysis) -> Iterator[str]:
    """Yield what changes the reading: the first notes, the others folded."""
    told = {note for context in analysis.contexts for note in context.unmeasured}
    notes = [for_html(note) for note in dict.fromkeys(analysis.report.warnings) if note not in told]
    if not notes:
        return
    yield f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in notes[:MOST_WARNINGS])}</ul>'
    if left := notes[MOST_WARNINGS:]:
        yield f"<details><summary>{show_count(len(left), 'more note')}</summary>"
        yield f'<ul class="notes">{"".join(f"<li>{note}</li>" for note in left)}</ul></details>'


def setup(groups: Sequence[GroupResult]) -> Iterator[str]:
    """Yield the box: machine, model, versions and the command, told once where scenarios share them."""
    told: dict[str, dict[str, list[str]]] = {}
    for group in groups:
        for label, value in _facts(group):
            told.setdefault(label, {}).setdefault(value, []).append(group.context.scenario)
    yield '<section class="box" id="setup"><h2>What was measured</h2><dl>'
    for label, values in told.items():
        yield f"<dt>{label}</dt>"
        for value, scenarios in values.items():
            whose = f'<span class="quiet">{for_html(", ".join(scenarios))}:</span> ' if len(values) > 1 else ""
            shown = _command(value) if label == "Command" else f"<span>{for_html(value)}</span>"
            yield f"<dd>{whose}{shown}</dd>"
    yield "</dl></section>"


def _command(text: str) -> str:
    """Return a command that is broken between words, where they are not longer than a line: never behind a hyphen."""
    words = (for_html(word) for word in text.split(" "))
    return f"<code>{' '.join(f'<span>{word}</span>' if len(word) <= UNBROKEN else word for word in words)}</code>"


def _facts(group: GroupResult) -> Iterator[tuple[str, str]]:
    """Yield label and value of one scenario's rows."""
    manifest = group.runs[0].manifest
    environment, model = manifest.environment, manifest.model
    yield "Machine", machine_name(environment)
    yield "Software", _joined(environment.get(key) for key in ("os", "kernel", "python", "driver", "cuda"))
    size = f"{three_digits(model.bytes / 1e6)} MB" if model.bytes else ""
    parameters = f"{three_digits(model.parameters / 1e6)} million parameters" if model.parameters else ""
    yield "Model", _joined([model.name, model.architecture, model.quantization, parameters, size])
    yield "Weights", f"SHA-256 {model.sha256}"
    yield "Engines", "; ".join(f"{label}: {text}" for label, text in group.context.engines.items())
    libraries = environment.get("libraries")
    if isinstance(libraries, dict) and libraries:
        yield "Versions", ", ".join(f"{name} {version}" for name, version in libraries.items())
    for run in group.runs:
        made = [run.manifest.run_id, run.manifest.created_utc, f"seed {run.manifest.seed}", run.manifest.status]
        yield "Run", _joined([*made, show_count(group.context.blocks, "block") if len(group.runs) == 1 else ""])
        yield "Command", command_of(run)


def machine_name(environment: dict[str, Any]) -> str:
    """Return what a machine is called: its processor, cores, memory and GPU."""
    return _joined(_machine(environment))


def _machine(environment: dict[str, Any]) -> Iterator[object]:
    yield environment.get("cpu")
    if cores := environment.get("cores"):
        yield f"{cores} cores"
    memory = environment.get("memory_bytes")
    if isinstance(memory, int | float) and memory:
        yield f"{three_digits(memory / 1e9)} GB memory"
    yield environment.get("gpu") or "no GPU"
    if governor := environment.get("governor"):
        yield f"governor {governor}"
    if environment.get("hypervisor"):
        yield "a virtual machine"


def _joined(parts: Any) -> str:
    """Return what is there of the parts, in one line."""
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def command_of(run: Run) -> str:
    """Return the command that made a run: as it was kept beside it, else as its manifest tells it."""
    manifest = run.manifest
    scenario = manifest.scenario
    if scenario.get("source_tool") is not None:
        return "not made by cmp run: results of another tool"
    words = kept_command(run)
    if not words:
        kinds = {engine.name: engine.options.get("engine", engine.name) for engine in manifest.engines}
        given = {
            "--engines": ",".join(name if name == kind else f"{name}={kind}" for name, kind in kinds.items()),
            "--scenario": scenario.get("name"),
            "--profile": scenario.get("profile"),
            "--model": manifest.model.name,
            "--baseline": manifest.baseline,
        }
        words = ["cmp", "run"]
        for option, value in given.items():
            words += [option, str(value)] if value else []
    if scenario.get("blocks"):
        words += ["--blocks", str(scenario["blocks"])]
    if scenario.get("requests") and not scenario.get("seconds"):
        words += ["--requests", str(scenario["requests"])]
    return command_line([*words, "--seed", str(manifest.seed)])
