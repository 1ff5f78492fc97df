"""What stands above a table: which runs, which engines, which of them may be compared, and with whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import NOT_COMPARABLE, TIMED_ONLY, Cell, RunEngine
from enginecmp_analysis.data.cells import cell_name, is_concurrent
from enginecmp_analysis.data.fingerprint import Group
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.levels import Levels, levels_of
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, measure_of
from enginecmp_analysis.schema.stats import StatsReport

JUDGED = "answers judged"
"""What stands in the gate's place where no model is computed: the measurement itself says how good each answer is."""


@dataclass(slots=True)
class Context:
    """The frame of one group of pooled runs.

    Attributes:
        scenario: name, made unique where groups share it.
        model: name and quantization.
        run_ids: the pooled runs.
        levels: what is repeated: the runs, or the nodes that they are of.
        baseline: label compared with.
        primary_metric: name of the metric declared to decide on, "" when none was.
        engines: label to a short description: version, device, default or tuned, how it holds several requests at
            once (where there are several), and how it passed the equivalence gate.
        gates: label to what the equivalence gate says of it.
        not_comparable: labels that are listed but not compared.
        unproven: labels that are compared although the exact question has no answer, each with the reason.
        flagged: labels of which every request is flagged: their figures are shown, marked, and not compared.
        blocks: blocks of all pooled runs.
        warnings: what concerns the whole group.
        unmeasured: engines without a single value, each with the reason.
        without_primary: engines that have values, but none of the primary metric, each with the reason.
        failed: engines with launches that failed before anything could be measured, each with how.
        excluded: engines that lost requests, or whose flagged ones count by request, each with how many and why.
        notes: what was noticed about the launches of a cell.
    """

    scenario: str
    model: str
    run_ids: list[str]
    baseline: str
    primary_metric: str
    engines: dict[str, str]
    gates: dict[str, str]
    not_comparable: list[str]
    unproven: dict[str, str]
    blocks: int
    levels: Levels = field(default_factory=Levels)
    warnings: list[str] = field(default_factory=list)
    unmeasured: list[str] = field(default_factory=list)
    without_primary: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    notes: dict[Cell | None, list[str]] = field(default_factory=dict)
    flagged: list[str] = field(default_factory=list)

    def pairs(self, every: bool) -> list[tuple[str, str]]:
        """Return (baseline, engine) pairs to compare: with the baseline, or every engine with every other."""
        labels = [label for label in self.engines if label not in self.not_comparable]
        if every:
            return list(combinations(labels, 2))
        return [(self.baseline, label) for label in labels if label != self.baseline and self.baseline in labels]


@dataclass(slots=True)
class GroupResult:
    """One group of pooled runs.

    Attributes:
        context: its frame.
        runs: the runs.
        means: the launch means behind its numbers.
        cuts: the warm-up cut of each cell.
        kept: for every run a mask over its samples: which ones stand behind the means.
        held: the same for bytes that engines hold.
    """

    context: Context
    runs: list[Run]
    means: dict[Key, LaunchMeans]
    cuts: dict[Cell, int]
    kept: list[NDArray[np.bool_]]
    held: list[NDArray[np.bool_]]


@dataclass(slots=True)
class Analysis:
    """The report, and what lies behind it.

    Attributes:
        report: what is told.
        groups: runs that are pooled, each with its numbers.
        metrics: names that alone were asked for; empty for all.
    """

    report: StatsReport
    groups: list[GroupResult] = field(default_factory=list)
    metrics: tuple[str, ...] = ()

    @property
    def contexts(self) -> list[Context]:
        """The frames of all groups."""
        return [group.context for group in self.groups]


def cell_notes(context: Context) -> list[str]:
    """Return the notes of all cells, each with the place it is about."""
    return [f"{context.scenario}, {cell_name(cell)}: {note}" for cell, notes in context.notes.items() for note in notes]


def describe_group(group: Group, scenario: str, baseline: str | None) -> Context:
    """Return the frame of a group.

    Args:
        group: pooled runs.
        scenario: label from `scenario_labels`.
        baseline: label asked for; None takes that of the first run.
    """
    first = group.runs[0].manifest
    chosen = baseline or first.baseline
    engines: dict[str, str] = {}
    gates: dict[str, str] = {}
    not_comparable: list[str] = []
    unproven: dict[str, str] = {}
    for run in group.runs:
        unproven |= {entry.engine: entry.note for entry in run.manifest.equivalence if entry.verdict == TIMED_ONLY}
        for engine in run.manifest.engines:
            verdicts = {e.verdict for e in run.manifest.equivalence if e.engine == engine.name}
            if NOT_COMPARABLE in verdicts and engine.name not in not_comparable:
                not_comparable.append(engine.name)
            if engine.name not in engines or NOT_COMPARABLE in verdicts or TIMED_ONLY in verdicts:
                engines[engine.name] = ", ".join(_description(engine, run, verdicts))
                gates[engine.name] = _gate(verdicts, run)
    context = Context(
        scenario=scenario,
        model=f"{first.model.name} ({first.model.quantization})" if first.model.quantization else first.model.name,
        run_ids=[run.manifest.run_id for run in group.runs],
        levels=levels_of(group.runs),
        baseline=chosen,
        primary_metric=str(first.scenario.get("primary_metric") or ""),
        # The baseline first: everything is read against it.
        engines={label: engines[label] for label in sorted(engines, key=lambda label: label != chosen)},
        gates=gates,
        not_comparable=not_comparable,
        unproven={label: note for label, note in unproven.items() if label not in not_comparable},
        blocks=sum(
            len({*np.unique(run.columns.block).tolist(), *(told.block for told in run.told)}) for run in group.runs
        ),
    )
    _warn(context, {run.manifest.baseline for run in group.runs} if baseline is None else {baseline})
    return context


def _description(engine: RunEngine, run: Run, verdicts: set[str]) -> Iterator[str]:
    """Yield version, device, whether it was tuned, how it holds several requests where there are several, the gate."""
    yield engine.version
    yield engine.device
    if tuned := engine.options.get("tuned"):
        yield str(tuned)
    if any(is_concurrent(cell) for cell in run.columns.cells) and (batching := engine.options.get("batching")):
        yield {"continuous": "continuous batching", "queue": "queue, first in first out"}.get(
            str(batching), str(batching)
        )
    if not engine.options.get("timed", True):
        yield "not timed"
    proven = {e.proven_utc for e in run.manifest.equivalence if e.engine == engine.name}
    dates = sorted(when[:10] for when in proven if isinstance(when, str))
    yield _gate(verdicts, run) + (f" (proven on {dates[0]})" if dates else "")


def _warn(context: Context, baselines: set[str]) -> None:
    for label in context.not_comparable:
        context.warnings.append(
            f"{label} does not compute what the reference computes: its numbers are shown, not compared"
        )
    for label, note in context.unproven.items():
        context.warnings.append(
            f"{label} is near the reference on the timed file; {note or 'exactness unproven'}: its verdicts say so"
        )
    if context.baseline not in context.engines or context.baseline in context.not_comparable:
        why = "is not comparable" if context.baseline in context.engines else "is in none of these runs"
        context.warnings.append(
            f"baseline {context.baseline} {why}: nothing is compared with it; choose another with --baseline"
        )
    if len(baselines) > 1:
        others = ", ".join(sorted(baselines - {context.baseline}))
        context.warnings.append(f"runs name different baselines: {context.baseline} is taken, not {others}")
    unchecked = ", ".join(label for label, text in context.gates.items() if "not checked" in text)
    if unchecked:
        context.warnings.append(f"not checked for equivalence: {unchecked}; the engines may not compute the same thing")
    if context.primary_metric not in METRICS:
        told = f"unknown primary metric '{context.primary_metric}'" if context.primary_metric else "no primary metric"
        context.warnings.append(f"scenario {context.scenario}: {told}; every comparison is exploratory")
        context.primary_metric = ""


def _gate(verdicts: set[str], run: Run) -> str:
    if NOT_COMPARABLE in verdicts:
        return NOT_COMPARABLE
    measure = measure_of(run.manifest.scenario)
    if measure is not None and not measure.needs_model:
        return JUDGED
    if not verdicts or "not checked" in verdicts:
        return "equivalence not checked"
    if TIMED_ONLY in verdicts:
        return f"{TIMED_ONLY}, exactness unproven"
    return "reference" if verdicts == {"reference"} else "equivalent"


def scenario_labels(groups: Sequence[Group]) -> list[str]:
    """Return scenario names; where groups share one, with the first run's id, so that none can be mixed up."""
    names = [str(group.runs[0].manifest.scenario.get("name", "unnamed")) for group in groups]
    return [
        name if names.count(name) == 1 else f"{name} @ {group.runs[0].manifest.run_id}"
        for name, group in zip(names, groups, strict=True)
    ]
