"""What `cmp stats` prints without being asked for more: the answer, the ranking, what changes the reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.group import JUDGED, Analysis, Context
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.render.beside import beside
from enginecmp_analysis.render.layout import WIDTH, Line, listed, shorten, show_count, wrap
from enginecmp_analysis.render.ranking_rows import MOST_TABLES, footnote, overview_rows, ranking_rows
from enginecmp_analysis.render.sentence import answers
from enginecmp_analysis.schema.stats import Ranking

MOST_WARNINGS = 3
LEAST_WIDTH = 40
PASSED = ("equivalent", "reference", JUDGED)
"""What the gate says of an engine without any reservation."""


def first_screen(analysis: Analysis, shown: str, width: int = WIDTH) -> list[Line]:
    """Return the lines.

    Args:
        analysis: of the runs.
        shown: how the runs were named on the command line, for the commands that show more.
        width: columns of the terminal; at most 80 of them are used, and a narrow one has no column for a gate that
            every engine passed.
    """
    width = max(LEAST_WIDTH, min(WIDTH, width))
    lines: list[Line] = []
    if not analysis.report.rankings:
        lines.append((nothing(analysis), "yellow"))
        lines += [(text, "red") for c in analysis.contexts for note in c.unmeasured for text in wrap(note, "! ", width)]
    for context in analysis.contexts:
        rankings = [ranking for ranking in analysis.report.rankings if ranking.scenario == context.scenario]
        for text in answers(rankings, analysis.report, context):
            lines += [(line, "bold") for line in wrap(text, "", width)]
        if analysis.report.rankings and not rankings:
            lines += [(text, "yellow") for text in wrap(f"Nothing to rank in {context.scenario}.", "", width)]
        lines.append(("", ""))
        lines += _head(context, width)
        if len(rankings) > MOST_TABLES:
            lines += _overview(rankings, width)
        else:
            for ranking in rankings:
                lines += _table(ranking, context, several=len(rankings) > 1, columns=width)
        lines += [(text, "") for told in beside(rankings, analysis.report) for text in wrap(told, "", width)]
        lines.append(("", ""))
    told = {text for text, _ in lines}
    lines += [line for line in _warnings(analysis, width) if line[0] not in told]
    lines += [(text, "dim") for text in wrap(f"more, with --all, --pairs or --details: {shown}", "", width)]
    return lines


def _head(context: Context, width: int) -> Iterator[Line]:
    runs = context.run_ids[0] if len(context.run_ids) == 1 else show_count(len(context.run_ids), "run")
    text = f"{context.scenario} · {context.model} · {show_count(context.blocks, 'block')} · {runs}"
    yield from ((line, "dim") for line in wrap(text, "", width))


def _table(ranking: Ranking, context: Context, *, several: bool, columns: int) -> Iterator[Line]:
    """Yield one line an engine: rank, value, ratio to the best, gate, a word; a narrow screen has the gate below."""
    unit, rows = ranking_rows(ranking, context)
    column = max(len("of the best"), *(len(row.ratio) for row in rows))
    narrow = columns < WIDTH
    ends = [", ".join(part for part in ("" if narrow else row.gate, row.word) if part) for row in rows]
    letters = max((len(row.letters) for row in rows), default=0)
    marked = letters + 1 if letters else 0
    width = columns - len("99  ") - marked - len("  1,234,567  ") - column - len("  ") - max(map(len, ends))
    width = min(max(len(row.engine) for row in rows), max(8, width))
    if several:
        yield from ((text, "bold") for text in wrap(cell_name(ranking.cell), "", columns))
    yield (
        f"    {'':{marked}}{'':{width}}  {unit:>9}  {'of the best':<{column}}  {'' if narrow else 'gate'}".rstrip(),
        "dim",
    )
    for row, end in zip(rows, ends, strict=True):
        name = f"{row.letters:<{marked}}{shorten(row.engine, width):<{width}}"
        line = f"{row.rank:>2}  {name}  {row.value:>9}  {row.ratio:<{column}}  {end}".rstrip()
        yield line, "green" if row.rank == "1" else ""
    if narrow and not all(row.gate in PASSED for row in rows):
        gates = dict.fromkeys(row.gate for row in rows)
        whose = [f"{gate}: {listed([row.engine for row in rows if row.gate == gate])}" for gate in gates]
        told = next(iter(gates)) if len(gates) == 1 else "; ".join(whose)
        yield from ((text, "dim") for text in wrap(f"gate: {told}", "", columns))
    if note := footnote(ranking):
        yield from ((text, "dim") for text in wrap(note, "", columns))


def _overview(rankings: Sequence[Ranking], columns: int) -> Iterator[Line]:
    """Yield one line a cell: who is first, by how much ahead of whom; what does not fit stands below, set in."""
    unit, rows = overview_rows(rankings)
    value, heading = len("  1,234,567  "), "first; others ÷ first"
    width = min(max(len(row.cell) for row in rows), max(8, columns - value - len(heading)))
    indent = width + value
    yield f"{'':{width}}  {unit:>9}  {heading}", "dim"
    for row in rows:
        text = f"{row.first}{f'; {row.others}' if row.others else ''}"
        head, *rest = wrap(text, "", columns - indent)
        yield f"{shorten(row.cell, width):<{width}}  {row.value:>9}  {head}", ""
        yield from ((f"{'':{indent}}{part}", "") for part in rest)


def nothing(analysis: Analysis) -> str:
    """Return why there is no ranking."""
    if any(run.manifest.scenario.get("find_max") for group in analysis.groups for run in group.runs):
        return (
            "A search for the largest load has nothing to rank: each engine met loads of its own; its answer is below."
        )
    if reasons := [reason for context in analysis.contexts for reason in context.without_primary]:
        return f"Nothing to rank: {'; '.join(reasons)}."
    timed = any(run.manifest.scenario.get("blocks") != 0 for group in analysis.groups for run in group.runs)
    primary = any(context.primary_metric in METRICS for context in analysis.contexts)
    why = "no request ended well and unflagged" if primary else "the scenario names no primary metric"
    return f"Nothing to rank: {why if timed else 'the run is of the gate alone'}."


def _warnings(analysis: Analysis, width: int) -> Iterator[Line]:
    report = analysis.report
    # Where there is one cell, it needs no name before every note.
    one = len(analysis.contexts) == len(report.rankings) == 1
    place = f"{report.rankings[0].scenario}, {cell_name(report.rankings[0].cell)}: " if one else ""
    warnings = list(dict.fromkeys(warning.removeprefix(place) for warning in report.warnings))
    for warning in warnings[:MOST_WARNINGS]:
        yield from ((text, "yellow") for text in wrap(warning, "! ", width))
    left = len(warnings) - MOST_WARNINGS
    if left > 0:
        yield f"! {show_count(left, 'more note')} with --all", "yellow"
