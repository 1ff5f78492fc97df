"""What a reader must know about the launches before trusting their means: losses, warm-up, drift, heavy tails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.columns import FAILED, KEPT, MEASURE, PHASES
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.statistics.stationarity import correlation, drift_inside, trend
from enginecmp_analysis.statistics.tails import INFINITE_VARIANCE, tail_index
from enginecmp_analysis.statistics.warmup import Steadiness

NOTABLE_DRIFT = 0.02
NOTABLE_CORRELATION = 0.3
NOTABLE_SPREAD = 0.05
SURE = 0.01


def exclusions(runs: Iterable[Run], *, include_flagged: bool = False) -> list[str]:
    """Return one sentence an engine that lost samples: how many of how many, and why."""
    lost: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for run in runs:
        columns = run.columns
        phase = columns.phase == MEASURE
        for code, label in enumerate(columns.engines):
            reasons, counts = np.unique(columns.excluded[phase & (columns.engine == code)], return_counts=True)
            total[label] += int(counts.sum())
            for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True):
                if reason != KEPT:
                    lost.setdefault(label, Counter())[columns.reasons[reason]] += count
    verb = "flagged or failed" if include_flagged else "left out"
    notes = []
    for label, why_lost in lost.items():
        count = sum(why_lost.values())
        why = ", ".join(f"{reason} {n}" for reason, n in why_lost.most_common())
        hint = "; --include-flagged shows the flagged ones" if count == total[label] and not include_flagged else ""
        notes.append(f"{label}: {count} of {total[label]} measured requests {verb}: {why}{hint}")
    return notes


LATE = "late_dispatch"
"""Flag of every request of a launch's cell whose load generator lagged."""


def invalid_cells(runs: Iterable[Run]) -> list[str]:
    """Return one sentence for every engine and cell that the load generator spoiled in every launch.

    What is left out altogether has no table of its own, so it must be told apart from what was never measured.
    """
    late: dict[tuple[str, str], bool] = {}
    runs = list(runs)
    if not any(LATE in reason.split("+") for run in runs for reason in run.columns.reasons):
        return []
    for run in runs:
        columns = run.columns
        # A request that was never answered carries its status, whatever the generator did.
        phase = (columns.phase == MEASURE) & ~columns.failed()
        spoilt = columns.flagged(LATE)
        for code, label in enumerate(columns.engines):
            for number, cell in enumerate(columns.cells):
                mine = phase & (columns.engine == code) & (columns.cell == number)
                if mine.any():
                    key = (label, cell_name(cell))
                    late[key] = late.get(key, True) and bool(spoilt[mine].all())
    return [
        f"{label}, {where}: invalid: the load generator lagged in every launch, so nothing is said of it"
        for (label, where), all_late in late.items()
        if all_late
    ]


def failed_launches(runs: Iterable[Run]) -> list[str]:
    """Return one sentence an engine whose launches failed before anything could be measured."""
    lost: dict[str, Counter[str]] = {}
    for run in runs:
        columns = run.columns
        for code, reason in enumerate(columns.reasons):
            if reason not in FAILED:
                continue
            for row in np.flatnonzero((columns.phase != MEASURE) & (columns.excluded == code)).tolist():
                where = f"{reason} in {PHASES[int(columns.phase[row])]}"
                lost.setdefault(columns.engines[int(columns.engine[row])], Counter())[where] += 1
    return [
        f"{label}: {sum(found.values())} launches failed: " + ", ".join(f"{where} {n}" for where, n in found.items())
        for label, found in lost.items()
    ]


def steadiness_notes(found: Steadiness) -> list[str]:
    """Return what was cut from a cell, and which launches were never steady."""
    notes = []
    if found.cut:
        notes.append(f"the first {found.cut} requests of every launch of every engine are cut as warm-up")
    for engine, classes in found.classes.items():
        odd = Counter(kind for kind in classes if kind in ("slow-down", "no steady state"))
        for kind, count in odd.items():
            what = "slow down" if kind == "slow-down" else "reach no steady state"
            notes.append(f"{engine}: {count} of {len(classes)} launches {what}")
    return notes


def launch_notes(engine: str, launches: LaunchMeans) -> list[str]:
    """Return what is odd about the request times of one engine in one cell.

    None of it spoils the comparison of launch means; all of it says what the launches are like.

    Args:
        engine: label.
        launches: its e2e_seconds, after the cut.
    """
    notes = []
    parts = launches.per_launch()
    tail = tail_index(launches.values)
    if tail <= INFINITE_VARIANCE:
        notes.append(
            f"{engine}: a tail this heavy (index {tail:.1f}) may have no finite variance: means settle slowly "
            "or never, read the quantiles"
        )
    growth, p = drift_inside(parts)
    if p < SURE and abs(growth) > NOTABLE_DRIFT:
        notes.append(f"{engine}: requests get {_percent(growth)} {_slower(growth)} from first to last in a launch")
    related = correlation(parts)
    if related.lag_one > NOTABLE_CORRELATION and related.effective < related.n / 2:
        notes.append(
            f"{engine}: neighbouring requests are alike (lag-1 {related.lag_one:.2f}): {related.n} requests count as "
            f"{related.effective:.0f}; verdicts rest on launches"
        )
    order = sorted(range(len(launches.blocks)), key=lambda i: launches.blocks[i])
    across = trend(launches.means[order])
    if across.p_value < SURE and abs(across.change) > NOTABLE_DRIFT:
        notes.append(
            f"{engine}: launches get {_percent(across.change)} {_slower(across.change)} from first block to last; "
            "pairing inside blocks cancels what all engines share"
        )
    spread = float(launches.means.std(ddof=1) / launches.means.mean()) if len(launches.means) > 1 else math.nan
    if spread > NOTABLE_SPREAD:
        notes.append(f"{engine}: launch means spread by {_percent(spread)}, more than 5 % from launch to launch")
    return notes


def imported(runs: Iterable[Run]) -> list[str]:
    """Return what is known too little of runs that came from other tools.

    Requests of one launch are correlated, so nothing can be tested with one; and a file counts as a launch without
    any proof that the engine was started anew for it.
    """
    launches: dict[str, set[tuple[str, int]]] = {}
    for run in runs:
        if run.manifest.scenario.get("source_tool") is None:
            continue
        columns = run.columns
        for engine, launch in sorted({*zip(columns.engine.tolist(), columns.launch.tolist(), strict=True)}):
            launches.setdefault(columns.engines[engine], set()).add((run.manifest.run_id, launch))
    alone = ", ".join(label for label, found in launches.items() if len(found) == 1)
    several = ", ".join(label for label, found in launches.items() if len(found) > 1)
    notes = []
    if alone:
        notes.append(
            f"imported as a single launch: {alone}; requests of one launch are correlated, so they give no interval, "
            "no p-value and no verdict (a test on them would be far too optimistic); import one file a launch"
        )
    if several:
        notes.append(
            f"imported, each file taken for a launch: {several}; p-values are optimistic if the engine was not "
            "started anew for every file"
        )
    return notes


def _percent(value: float) -> str:
    return f"{abs(value):.1%}".replace("%", " %")


def _slower(growth: float) -> str:
    return "slower" if growth > 0 else "faster"
