"""The answer in one sentence: who is ahead on the primary metric, by how much, how sure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.render.layout import listed, show_limit, three_digits
from enginecmp_analysis.render.needed import hopeless_words, is_hopeless, missing
from enginecmp_analysis.render.ranking_rows import MOST_TABLES, UNPROVEN
from enginecmp_analysis.schema.stats import Comparison, Ranking, StatsReport

_PHRASES: Mapping[str, str] = {
    "ttft_seconds": "gives its first token in {ratio} × the time of {baseline}",
    "itl_seconds": "takes {ratio} × the time between tokens of {baseline}",
    "tpot_seconds": "takes {ratio} × the time per token of {baseline}",
    "e2e_seconds": "answers in {ratio} × the time of {baseline}",
    "prefill_tokens_per_second": "reads {ratio} × the prompt tokens per second of {baseline}",
    "decode_tokens_per_second": "decodes {ratio} × the tokens per second of {baseline}",
    "throughput_tokens_per_second": "generates {ratio} × the tokens per second of {baseline}",
    "requests_per_second": "serves {ratio} × the requests per second of {baseline}",
    "goodput_requests_per_second": "serves {ratio} × the requests per second within the limits of {baseline}",
    "saturation_requests_per_second": "is saturated at {ratio} × the requests per second of {baseline}",
    "load_seconds": "loads in {ratio} × the time of {baseline}",
    "first_token_from_start_seconds": "gives its first token {ratio} × as long after its start as {baseline}",
    "operation_seconds": "takes {ratio} × the time per call of {baseline}",
    "peak_rss_above_empty_bytes": "takes {ratio} × the memory of {baseline}",
}


def answers(rankings: Sequence[Ranking], report: StatsReport, context: Context) -> list[str]:
    """Return what stands before everything else of a scenario: a sentence a cell, or the first cell's of many."""
    return [
        (f"{cell_name(ranking.cell)}: " if len(rankings) > 1 else "") + sentence(ranking, report, context)
        for ranking in (rankings[:1] if len(rankings) > MOST_TABLES else rankings)
    ]


def sentence(ranking: Ranking, report: StatsReport, context: Context) -> str:
    """Return what a cell's primary metric says of all engines, best first, against the baseline.

    Args:
        ranking: of the cell.
        report: with the comparisons with the baseline.
        context: of the group.
    """
    if not any(row.engine not in context.not_comparable for row in ranking.rows):
        return f"Nothing can be compared: {listed([row.engine for row in ranking.rows])} did not pass the gate."
    spoilt = [row.engine for row in ranking.rows if row.engine in context.flagged]
    if len(spoilt) == len(ranking.rows):
        return f"Nothing can be compared: every request of {listed(spoilt)} is flagged; the figures are marked."
    found = {
        c.engine: c
        for c in report.comparisons
        if (c.scenario, c.cell, c.metric, c.baseline)
        == (ranking.scenario, ranking.cell, ranking.metric, context.baseline)
    }
    order = [row.engine for row in ranking.rows if row.engine in found]
    if not order:
        only = ranking.rows[0]
        return f"{only.engine} is alone here: nothing to compare it with."
    told = [found[engine] for engine in order if found[engine].verdict in ("faster", "slower", "equivalent")]
    parts = [_told(c, ranking, first=at == 0) for at, c in enumerate(told)]
    undecided = [found[engine] for engine in order if found[engine].verdict == "inconclusive"]
    open_ones = [c for c in undecided if math.isfinite(c.ratio)]
    without = [c for c in undecided if not math.isfinite(c.ratio)]
    withheld = [found[engine] for engine in order if found[engine].verdict == "withheld"]
    for hopeless in (False, True):
        if some := [c for c in open_ones if is_hopeless(c) is hopeless]:
            parts.append(_undecided(some, context.baseline))
    if without:
        parts.append(_without_ratio(without, ranking, alone=not parts))
    if withheld:
        parts.append(_withheld(withheld, context.baseline, alone=not parts))
    unproven = [label for label in (context.baseline, *order) if label in context.unproven]
    word = f" ({UNPROVEN}: {listed(unproven)})" if unproven else ""
    return "; ".join(parts) + f"{word}."


def _told(c: Comparison, ranking: Ranking, *, first: bool) -> str:
    if c.verdict == "equivalent":
        return f"{c.engine} and {c.baseline} are equivalent ({_interval(c)})"
    if not first:
        return f"{c.engine} {three_digits(c.ratio)} ×"
    phrase = _PHRASES.get(ranking.metric, f"has {{ratio}} × the {ranking.metric} of {{baseline}}")
    return f"{c.engine} {phrase.format(ratio=three_digits(c.ratio), baseline=c.baseline)}, {_interval(c)}"


def _interval(c: Comparison) -> str:
    return f"95 % CI {show_limit(c.ci_low)}–{show_limit(c.ci_high)}"


def _undecided(some: Sequence[Comparison], baseline: str) -> str:
    """Return that engines cannot be told from the baseline, and what would tell them apart."""
    names = listed([*(c.engine for c in some), baseline])
    word, plural = missing(some[0])[1:]
    if is_hopeless(some[0]):
        low, high = min(c.ci_low for c in some), max(c.ci_high for c in some)
        return f"{names} cannot be told apart: {hopeless_words(word + plural, low, high)}"
    widest = max(some, key=lambda c: c.mde if math.isfinite(c.mde) else 0.0)
    needed = max(missing(c)[0] or 0 for c in some)
    more = f", {needed} more {word}{'' if needed == 1 else plural} may tell" if needed else ""
    shows = "these runs show" if widest.n_runs else "this run shows"
    sees = f" ({shows} differences from {100 * widest.mde:.1f} %)" if math.isfinite(widest.mde) else ""
    return f"{names} cannot be told apart{sees}{more}"


def _without_ratio(some: Sequence[Comparison], ranking: Ranking, *, alone: bool) -> str:
    """Return that some engines have no ratio to the baseline, because one of the two is at zero."""
    goodput = ranking.metric.startswith("goodput")
    zero = "kept the limits with no request" if goodput else "is at zero"
    nothing = [row.engine for row in ranking.rows if row.mean == 0]
    if len(nothing) == len(ranking.rows):
        text = "no engine kept the limits with any request" if goodput else f"every engine {zero}"
        return text.capitalize() if alone else text
    names = listed([c.engine for c in some])
    why = f"{listed(nothing)} {zero}" if nothing else "some launches are at zero"
    return f"{names} and {some[0].baseline} have no ratio: {why}"


def _withheld(some: Sequence[Comparison], baseline: str, *, alone: bool) -> str:
    names = listed([c.engine for c in some])
    if not any(c.launches_needed or c.requests_needed for c in some):
        return f"{'No' if alone else 'no'} verdict on {names} against {baseline}: flagged requests are counted"
    needed = max((c.launches_needed or 0 for c in some), default=0)
    requests = max((c.requests_needed for c in some), default=0)
    wanted = [f"{requests} valid requests in each launch"] if requests else []
    wanted += [f"{needed} more undisturbed launch{'es' if needed != 1 else ''}"] if needed else []
    missing = f": {' and '.join(wanted)} needed" if wanted else ""
    head = "No verdict yet" if alone else "no verdict yet"
    return f"{head} on {names} against {baseline}{missing}"
