"""What the data say beyond metrics: every kind of finding, asked in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import measured
from enginecmp_analysis.data.windows import Place, places
from enginecmp_analysis.findings.clocks import clock_findings, throttling, utilization
from enginecmp_analysis.findings.drift import drifts, fallbacks
from enginecmp_analysis.findings.growth import exponents, memory_growth
from enginecmp_analysis.findings.lengths import answer_lengths
from enginecmp_analysis.findings.memory_findings import kv_caches, leak_findings
from enginecmp_analysis.findings.overall import components, geometric_means, missed_saturation
from enginecmp_analysis.findings.prefix import repeated_prompts
from enginecmp_analysis.findings.profile import bottlenecks
from enginecmp_analysis.findings.speculation import guesses
from enginecmp_analysis.findings.structured import schema_costs
from enginecmp_analysis.schema.stats import Finding


def find_all(group: GroupResult) -> list[Finding]:
    """Return every finding about a group of pooled runs, topic after topic.

    Also adds to the notes of the cells what a reader must know of their windows.
    """
    steady = [list(places(run.columns, kept)) for run, kept in zip(group.runs, group.kept, strict=True)]
    for cell, note in fallbacks(steady):
        group.context.notes.setdefault(cell, []).append(note)
    return list(_all(group, steady))


def _all(group: GroupResult, steady: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    yield from geometric_means(group)
    yield from answer_lengths(group)
    yield from schema_costs(group)
    yield from missed_saturation(group, steady)
    yield from exponents(group)
    yield from memory_growth(group)
    yield from kv_caches(group)
    yield from leak_findings(
        group, [list(places(run.columns, held)) for run, held in zip(group.runs, group.held, strict=True)]
    )
    yield from components(group)
    yield from bottlenecks(group)
    # Not after the cut of the warm-up: a drift over the launch looks like one, and half of it would be gone.
    yield from drifts(group, [list(places(run.columns, measured(run.columns))) for run in group.runs])
    yield from utilization(group, steady)
    yield from throttling(group, steady)
    yield from clock_findings(group, steady)
    yield from repeated_prompts(group)
    yield from guesses(group)
