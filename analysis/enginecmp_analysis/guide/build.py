"""The guide as a whole: its sections, in the order in which somebody who must decide reads them."""

from __future__ import annotations

from enginecmp_analysis.data.group import Analysis
from enginecmp_analysis.decisions.capacity import Need, capacity
from enginecmp_analysis.decisions.decide import Questions
from enginecmp_analysis.guide.gaps import gaps
from enginecmp_analysis.guide.risks import risks
from enginecmp_analysis.guide.roadmap import roadmap
from enginecmp_analysis.guide.service import cost, largest_loads, service, targets
from enginecmp_analysis.guide.uses import uses
from enginecmp_analysis.render.pictures.answer import command_of
from enginecmp_analysis.schema.guide import Guide, Section, Table


def build(analysis: Analysis, questions: Questions) -> Guide:
    """Return the guide of an analysis.

    Args:
        analysis: with everything that was asked for decided (`decide_more`).
        questions: what was asked.

    Raises:
        UsageError: the price file has no price for an engine.
    """
    if questions.objectives and not analysis.report.capacity:
        # Without a demand it is still asked what one machine serves.
        analysis.report.capacity = capacity(analysis, Need(questions.objectives, prices=questions.prices))
    models = ", ".join(dict.fromkeys(context.model for context in analysis.contexts))
    machines = {str(group.runs[0].manifest.environment.get("cpu") or "a machine not told") for group in analysis.groups}
    sections = [
        uses(analysis),
        service(analysis),
        largest_loads(analysis),
        cost(analysis),
        targets(analysis),
        risks(analysis),
        gaps(analysis, questions),
        roadmap(analysis),
        _basis(analysis),
    ]
    return Guide(
        title=f"{models} on {', '.join(sorted(machines))}",
        sections=[section for section in sections if section is not None],
    )


def _basis(analysis: Analysis) -> Section:
    """Return the runs that everything rests on, and what a reader must know of them."""
    rows = [
        [
            run.manifest.run_id,
            group.context.scenario,
            run.manifest.created_utc,
            str(run.manifest.scenario.get("blocks") or group.context.blocks),
            "; ".join(f"{e.name} {e.version} ({e.device})" for e in run.manifest.engines),
            command_of(run),
        ]
        for group in analysis.groups
        for run in group.runs
    ]
    heads = ["run", "scenario", "made", "blocks", "engines", "command"]
    return Section(
        name="basis",
        title="What it rests on",
        text=["Intervals are of 95 % over launches; a ranking compares all pairs of a cell (Holm, 5 %)."],
        table=Table(heads=heads, rows=rows),
        notes=list(dict.fromkeys(analysis.report.warnings)),
    )
