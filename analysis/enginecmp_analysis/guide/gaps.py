"""What was not measured: nothing in the guide speaks of it."""

from __future__ import annotations

from collections.abc import Iterator

from enginecmp.format.enough import LAUNCHES_NEEDED
from enginecmp_analysis.data.cells import is_open
from enginecmp_analysis.data.group import Analysis, GroupResult
from enginecmp_analysis.decisions.decide import Questions
from enginecmp_analysis.render.layout import listed, show_count
from enginecmp_analysis.schema.guide import Section


def gaps(analysis: Analysis, questions: Questions) -> Section:
    """Return the section."""
    return Section(name="gaps", title="What was not measured", notes=list(dict.fromkeys(_gaps(analysis, questions))))


def _gaps(analysis: Analysis, questions: Questions) -> Iterator[str]:
    report = analysis.report
    models = list(dict.fromkeys(context.model for context in analysis.contexts))
    environments = [group.runs[0].manifest.environment for group in analysis.groups]
    machines = list(dict.fromkeys(str(environment.get("cpu") or "a CPU not told") for environment in environments))
    yield f"Other models than {listed(models)}, other machines than {listed(machines)}, other versions of the engines."
    everyone = list(dict.fromkeys(engine for context in analysis.contexts for engine in context.engines))
    for group in analysis.groups:
        yield from _of_group(group, everyone)
    withheld = [c for c in report.comparisons if c.primary and c.verdict in ("withheld", "inconclusive")]
    if withheld:
        who = listed(list(dict.fromkeys(f"{c.engine} against {c.baseline} in {c.scenario}" for c in withheld)))
        yield f"No verdict on the primary metric: {who}."
    cells = [cell for group in analysis.groups for run in group.runs for cell in run.columns.cells]
    if not any(is_open(cell) for cell in cells):
        yield "Arrivals that do not wait for answers (an open loop): users who come whether the engine is ready or not."
    metrics = {summary.metric for summary in report.summaries}
    if "joules_per_token" not in metrics:
        yield "Energy: no counter of it could be read."
    if not report.quality:
        yield "Quality of the text: the runs hold no perplexity or KL."
    if not questions.objectives:
        yield "A service-level objective: none was given (--slo)."
    elif not report.capacity or not report.capacity.rows:
        yield "Capacity at the SLO: no run holds requests of a load."
    if questions.prices is None:
        yield "Cost: no price was given (--price)."


def _of_group(group: GroupResult, everyone: list[str]) -> Iterator[str]:
    context = group.context
    yield from (f"{context.scenario}: {note}." for note in (*context.unmeasured, *context.without_primary))
    if missing := [engine for engine in everyone if engine not in context.engines]:
        yield f"{context.scenario}: {listed(missing)}, which other runs here have."
    unchecked = [engine for engine, gate in context.gates.items() if "not checked" in gate]
    if unchecked:
        yield f"{context.scenario}: whether {listed(unchecked)} computes what the reference computes."
    for run in group.runs:
        scenario = run.manifest.scenario
        left_out = scenario.get("left_out")
        if isinstance(left_out, dict):
            yield from (f"{context.scenario}: {cell}: {why}." for cell, why in left_out.items())
        if run.manifest.status != "complete":
            yield f"{context.scenario}: run {run.manifest.run_id} is {run.manifest.status}, not complete."
        planned = scenario.get("blocks")
        if isinstance(planned, int) and planned and run.manifest.status == "complete" and planned < LAUNCHES_NEEDED:
            has = f"run {run.manifest.run_id} has {show_count(planned, 'block')}"
            yield f"{context.scenario}: {has}, a verdict takes {LAUNCHES_NEEDED}."
