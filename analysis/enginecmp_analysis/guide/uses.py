"""Which engine with which settings for which use: what the rankings of the runs say, and what they leave open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import is_concurrent, is_open, short_name
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.data.metrics import metric_of
from enginecmp_analysis.findings.overall import OFFERED
from enginecmp_analysis.guide.words import closing_command, run_names, settings, start_command, value_words
from enginecmp_analysis.render.layout import listed, show_count, show_limits, three_digits
from enginecmp_analysis.render.ranking_rows import behind_word
from enginecmp_analysis.schema.guide import Section, Table
from enginecmp_analysis.schema.stats import Comparison, Ranked, Ranking, Summary

LONG_TOKENS = 1024
"""Prompts from this length on are long context."""


@dataclass(frozen=True, slots=True)
class Use:
    """What an engine may be wanted for.

    Attributes:
        name: of the use.
        about: which measurements speak of it.
        metrics: that decide it, the one that says most first.
        fits: whether a cell is of that use.
        scenario: that measures it.
    """

    name: str
    about: str
    metrics: tuple[str, ...]
    fits: Callable[[Cell | None], bool]
    scenario: str


NOBODY = "no engine passed the gate"
"""Why nobody is named for a use."""


def _alone(cell: Cell | None) -> bool:
    return cell is not None and not is_concurrent(cell) and cell.prompt_tokens < LONG_TOKENS


def _loaded(cell: Cell | None) -> bool:
    return cell is not None and is_concurrent(cell)


def _long(cell: Cell | None) -> bool:
    return cell is not None and cell.prompt_tokens >= LONG_TOKENS and not is_concurrent(cell)


USES = (
    Use(
        "interactive",
        f"one user at a time, prompts below {LONG_TOKENS} tokens: waiting for the first token and for the answer",
        ("ttft_seconds", "tpot_seconds", "e2e_seconds", "decode_tokens_per_second"),
        _alone,
        "single",
    ),
    Use(
        "throughput",
        "several requests in flight: tokens or requests a second",
        ("throughput_tokens_per_second", "saturation_requests_per_second", "requests_per_second"),
        _loaded,
        "sustained",
    ),
    Use(
        "long context",
        f"prompts of {LONG_TOKENS} tokens or more, one user: waiting for the first token",
        ("ttft_seconds", "prefill_tokens_per_second", "e2e_seconds"),
        _long,
        "long_context",
    ),
    Use(
        "memory-bound",
        "memory is what is short: its peak above the empty process, or on the GPU",
        ("gpu_memory_bytes", "peak_rss_above_empty_bytes"),
        lambda cell: cell is not None,
        "memory",
    ),
)


def uses(analysis: Analysis) -> Section:
    """Return the section: a sentence a use, the numbers of every cell behind it, and what closes what is open."""
    section = Section(name="uses", title="Which engine for which use?")
    heads = ["use", "measured", "engine", "settings", "what the data say", "run"]
    rows: list[list[str]] = []
    for use in USES:
        found = list(_answers(analysis, use))
        if not found:
            section.text.append(f"{use.name.capitalize()}: not measured ({use.about}).")
            section.commands.append(start_command(analysis, use.scenario))
            continue
        section.text.append(_sentence(use, found))
        rows += [[use.name, *answer.row] for answer in found]
        section.commands += [answer.command for answer in found if answer.command]
    section.commands = list(dict.fromkeys(section.commands))
    if rows:
        section.table = Table(heads=heads, rows=rows)
    return section


@dataclass(frozen=True, slots=True)
class Answer:
    """What one cell says of a use.

    Attributes:
        engines: those that nothing was shown to be better than; empty while that is open.
        row: cells of the table behind the use.
        command: what closes it; empty where it is closed.
        exploratory: not on the scenario's primary metric.
        alone: the one engine that was measured; empty where there are several.
    """

    engines: tuple[str, ...]
    row: list[str]
    command: str
    exploratory: bool = False
    alone: str = ""


def _sentence(use: Use, found: Sequence[Answer]) -> str:
    name = use.name.capitalize()
    decided = [answer for answer in found if answer.engines]
    if not decided and all(answer.alone for answer in found):
        only = listed(list(dict.fromkeys(answer.alone for answer in found)))
        return f"{name}: nothing to choose from; {only} alone was measured ({use.about})."
    if not decided:
        return f"{name}: open; the table says what is missing ({use.about})."
    wins: dict[str, int] = {}
    for answer in decided:
        for engine in answer.engines:
            wins[engine] = wins.get(engine, 0) + 1
    everywhere = [engine for engine, count in wins.items() if count == len(decided)]
    cells = f"{len(decided)} measured cells" if len(decided) > 1 else "the measured cell"
    if len(everywhere) == 1:
        ties = [engine for engine in wins if engine not in everywhere]
        shared = f", in some of them level with {listed(ties)}" if ties else ""
        said = f"{everywhere[0]}, which nothing was shown to beat in {cells}{shared}"
    elif everywhere:
        said = f"{listed(everywhere)}, which were not told apart in {cells}"
    else:
        told = ", ".join(f"{engine} in {count}" for engine, count in sorted(wins.items(), key=lambda item: -item[1]))
        said = f"it depends on the cell; of {cells} nothing beats {told}"
    still = f"; {len(found) - len(decided)} more are open" if len(found) > len(decided) else ""
    hedge = "; exploratory: not the metric that the scenario was made to decide on" if decided[0].exploratory else ""
    place, _, _, numbers, runs = decided[0].row
    return f"{name}: {said} ({place}: {numbers}; run {runs}{hedge}){still}."


def _answers(analysis: Analysis, use: Use) -> Iterator[Answer]:
    """Yield what every cell of a use says, by the first of its metrics that decides something there."""
    for group in analysis.groups:
        own = [r for r in analysis.report.rankings if r.scenario == group.context.scenario]
        ranked = [ranking for ranking in own if _speaks(use, ranking.metric, ranking.cell)]
        yield from (_ranked(analysis, group, ranking) for ranking in ranked)
        if ranked:
            continue
        present = [s for s in analysis.report.summaries if s.scenario == group.context.scenario and not s.flagged]
        present = [s for s in present if _speaks(use, s.metric, s.cell)]
        metric = next((m for m in use.metrics if any(s.metric == m for s in present)), None)
        for cell in dict.fromkeys(s.cell for s in present if s.metric == metric):
            yield _exploratory(analysis, group, str(metric), cell)


def _speaks(use: Use, metric: str, cell: Cell | None) -> bool:
    """Return whether a metric in a cell decides a use: rates of an open loop are those of the arrivals."""
    return metric in use.metrics and use.fits(cell) and not (metric in OFFERED and cell is not None and is_open(cell))


def _ranked(analysis: Analysis, group: GroupResult, ranking: Ranking) -> Answer:
    left_out = {*group.context.not_comparable, *group.context.flagged}
    rows = [row for row in ranking.rows if row.engine not in left_out]
    place, runs = f"{ranking.metric}, {short_name(ranking.cell)}", run_names(group)
    if not rows:
        why = "no engine passed the gate without every request flagged" if group.context.flagged else NOBODY
        return Answer((), [place, "none", "", why, runs], "")
    leader = rows[0]
    mean = value_words(_summary(analysis, ranking.scenario, leader.engine, ranking.metric, ranking.cell))
    if len(rows) == 1:
        row = [place, f"{leader.engine}, alone", settings(group, leader.engine), mean, runs]
        return Answer((), row, "", alone=leader.engine)
    if not ranking.decided:
        said = f"no verdict: {leader.engine} leads with {mean} and {show_count(leader.n_launches, 'launch', 'es')}"
        return Answer((), [place, "open", "", said, runs], closing_command(analysis, group, _open(analysis, ranking)))
    first = [row for row in rows if row.rank == 1]
    others = [_beaten(row, ranking) for row in rows if row.rank != 1]
    said = f"{mean}, {show_count(leader.n_launches, 'launch', 'es')}"
    if len(first) > 1:
        level = [row for row in first if row is not leader]
        said += f"; not told from it: {', '.join(_beside(row) for row in level)}"
    if others:
        said += f"; {', '.join(others)}"
    names = tuple(row.engine for row in first)
    how = "; ".join(f"{name}: {settings(group, name)}" if len(names) > 1 else settings(group, name) for name in names)
    return Answer(names, [place, " or ".join(names), how, said, run_names(group)], "")


def _beaten(row: Ranked, ranking: Ranking) -> str:
    return f"{_beside(row)} ({behind_word(row, ranking.metric)})"


def _beside(row: Ranked) -> str:
    if not math.isfinite(row.ratio_to_best):
        return row.engine
    return f"{row.engine} {three_digits(row.ratio_to_best)}{show_limits(row.ci_low, row.ci_high)} of it"


def _open(analysis: Analysis, ranking: Ranking) -> list[Comparison]:
    """Return the comparisons that a ranking without a verdict rests on."""
    return [
        c
        for c in analysis.report.comparisons
        if (c.scenario, c.cell, c.metric) == (ranking.scenario, ranking.cell, ranking.metric)
    ]


def _exploratory(analysis: Analysis, group: GroupResult, metric: str, cell: Cell | None) -> Answer:
    """Say what a metric that a scenario was not made to decide on shows: who is shown better than the baseline."""
    context = group.context
    sign = -1.0 if metric_of(metric).higher_is_better else 1.0
    present = [
        s
        for s in analysis.report.summaries
        if (s.scenario, s.metric, s.cell) == (context.scenario, metric, cell)
        if s.engine not in context.not_comparable and not s.flagged
    ]
    place = f"{metric}, {short_name(cell)}"
    if not present:
        return Answer((), [place, "none", "", NOBODY, run_names(group)], "")
    present.sort(key=lambda s: sign * s.mean)
    leader = present[0]
    against = {
        c.engine: c
        for c in analysis.report.comparisons
        if (c.scenario, c.metric, c.cell, c.baseline) == (context.scenario, metric, cell, context.baseline)
    }
    said = f"{value_words(leader)}, {show_count(leader.n_launches, 'launch', 'es')}"
    row = [place, leader.engine, settings(group, leader.engine), said, run_names(group)]
    if len(present) == 1:
        row[1] = f"{leader.engine}, alone"
        return Answer((), row, "", exploratory=True, alone=leader.engine)
    own = against.get(leader.engine)
    if own is None and leader.engine == context.baseline:
        beaten = [c for c in against.values() if c.verdict == "slower"]
        if against and len(beaten) == len(against):
            row[3] = f"{said}; {', '.join(_against(c) for c in beaten)} (exploratory)"
            return Answer((leader.engine,), row, "", exploratory=True)
    if own is not None and own.verdict == "faster":
        rivals = [s.engine for s in present[1:] if s.engine != context.baseline]
        beside = f"; not compared with {listed(rivals)}: `cmp stats --pairs --metric {metric}`" if rivals else ""
        row[3] = f"{said}; {_against(own)} (exploratory){beside}"
        level = [e for e in rivals if (c := against.get(e)) is not None and c.verdict == "faster"]
        return Answer((leader.engine, *level), row, "", exploratory=True)
    row[1], row[3] = "open", f"no verdict: {leader.engine} leads with {said} (exploratory)"
    return Answer((), row, closing_command(analysis, group, against.values()), exploratory=True)


def _against(c: Comparison) -> str:
    return f"{c.engine} {three_digits(c.ratio)}{show_limits(c.ci_low, c.ci_high)} of {c.baseline}"


def _summary(analysis: Analysis, scenario: str, engine: str, metric: str, cell: Cell | None) -> Summary:
    return next(
        s
        for s in analysis.report.summaries
        if (s.scenario, s.engine, s.metric, s.cell) == (scenario, engine, metric, cell)
    )
