"""What the gate found and every number of a scenario, as tables that can be sorted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from enginecmp_analysis.data.cells import short_name
from enginecmp_analysis.data.group import Context
from enginecmp_analysis.data.metrics import verdict_word
from enginecmp_analysis.render.decision_table import quality_values
from enginecmp_analysis.render.escape import for_html
from enginecmp_analysis.render.layout import show_limit, show_percent, three_digits, unit_for
from enginecmp_analysis.render.pictures.elements import Cell, engine_name, table
from enginecmp_analysis.render.pictures.picture import metric_title
from enginecmp_analysis.render.ranking_rows import heading
from enginecmp_analysis.render.table import verdict_words
from enginecmp_analysis.schema.decisions import QualityRow
from enginecmp_analysis.schema.stats import Comparison, StatsReport, Summary

TONES = {"faster": "good", "slower": "bad", "equivalent": "same"}
"""Verdict to the class that page.css colours it by."""


def quality(context: Context, report: StatsReport) -> Iterator[str]:
    """Yield how far each engine is from the reference on the bundled text; nothing where it was not measured."""
    rows = [row for row in report.quality or [] if row.scenario == context.scenario]
    if not rows:
        return
    engines = list(context.engines)
    heads = ("engine", "gate", "file", "mean KL", "top-1", "perplexity", "ΔNLL (nats/token) [95 % CI]", "greedy tokens")
    yield from table(heads, [_quality(row, engines) for row in rows])


def _quality(row: QualityRow, engines: Sequence[str]) -> list[Cell]:
    file, *texts = quality_values(row)
    values = (row.mean_kl, row.top1, row.perplexity, row.nll_difference, row.greedy_agreement_tokens)
    numbers = [(text, math.nan if value is None else value) for text, value in zip(texts, values, strict=True)]
    return [engine_name(row.engine, engines), for_html(row.verdict), for_html(file), *numbers]


def numbers(context: Context, report: StatsReport) -> Iterator[str]:
    """Yield a scenario's comparisons and means."""
    engines = list(context.engines)
    comparisons = [c for c in report.comparisons if c.scenario == context.scenario]
    summaries = [s for s in report.summaries if s.scenario == context.scenario]
    if comparisons:
        yield "<h4>Comparisons</h4>"
        heads = ("metric", "cell", "engine", "baseline", "ratio", "95 % CI", "verdict", "numbers behind it")
        yield from table(heads, [_comparison(c, engines) for c in comparisons])
    if summaries:
        yield "<h4>Means</h4>"
        columns = ("metric", "cell", "engine", "mean", "95 % CI", "p50", "p90", "p99", "CV", "launches", "requests")
        yield from table(columns, _summaries(summaries, engines))


def _comparison(c: Comparison, engines: Sequence[str]) -> list[Cell]:
    metric = f"<b>{for_html(c.metric)}</b> (primary)" if c.primary else for_html(c.metric)
    limits = f"{show_limit(c.ci_low)} – {show_limit(c.ci_high)}" if math.isfinite(c.ci_low) else "n/a"
    words = "; ".join([verdict_words(c), *c.warnings])
    verdict = f'<span class="{TONES.get(c.verdict, "open")}">{verdict_word(c.metric, c.verdict)}</span>'
    return [
        metric,
        for_html(short_name(c.cell)),
        engine_name(c.engine, engines),
        engine_name(c.baseline, engines),
        (three_digits(c.ratio), c.ratio),
        (limits, c.ci_low),
        verdict,
        for_html(words),
    ]


def _summaries(summaries: Sequence[Summary], engines: Sequence[str]) -> Iterator[list[Cell]]:
    """Yield rows in the unit that suits the largest mean of their metric; sorting takes the metric's own."""
    largest: dict[str, float] = {}
    for s in summaries:
        largest[s.metric] = max(abs(s.mean), largest.get(s.metric, 0.0))
    for s in summaries:
        scale, unit = unit_for(s.metric, largest[s.metric])
        unit = heading(s.metric, unit)
        low, high = three_digits(s.ci_low / scale), three_digits(s.ci_high / scale)
        yield [
            for_html(metric_title(s.metric) + (f", {unit}" if unit != "value" else "")),
            for_html(short_name(s.cell) + (", all flagged" if s.flagged else "")),
            engine_name(s.engine, engines),
            (three_digits(s.mean / scale), s.mean),
            (f"{low} – {high}" if math.isfinite(s.ci_low) else "n/a", s.ci_low),
            *((three_digits(value / scale), value) for value in (s.p50, s.p90, s.p99)),
            (show_percent(s.cv_launches), s.cv_launches),
            (str(s.n_launches), s.n_launches),
            (str(s.n_samples), s.n_samples),
        ]
