"""What a reader must know about the launches before trusting their means: losses, warm-up, drift, heavy tails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from enginecmp.format.flags import SPOIL_TIMES, Flag
from enginecmp.format.text import plain
from enginecmp_analysis.data.cells import cell_name
from enginecmp_analysis.data.columns import FAILED, KEPT, MEASURE, PHASES
from enginecmp_analysis.data.launches import LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.statistics.stationarity import NOTABLE_CORRELATION, correlation, drift_inside, trend
from enginecmp_analysis.statistics.tails import INFINITE_VARIANCE, tail_index
from enginecmp_analysis.statistics.warmup import Steadiness

NOTABLE_DRIFT = 0.02
NOTABLE_SPREAD = 0.05
NOTABLE_LOSS = 0.05
FAR_OUT = 10.0
"""Times of their launch's median from which single values are told of: one of them moves the mean of its launch."""
SURE = 0.01


def exclusions(runs: Iterable[Run], *, include_flagged: bool = False) -> dict[str, float]:
    """Return one sentence an engine that lost samples: how many of how many, and why; with the share that it lost."""
    lost: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    memory: set[str] = set()
    texts: dict[str, dict[str, None]] = {}
    for run in runs:
        columns = run.columns
        if not include_flagged and "peak_rss_bytes" in columns.metrics:
            memory.update(columns.engines)
        phase = columns.phase == MEASURE
        for code, label in enumerate(columns.engines):
            reasons, counts = np.unique(columns.excluded[phase & (columns.engine == code)], return_counts=True)
            total[label] += int(counts.sum())
            for reason in sorted(FAILED):
                own = columns.errors.get((code, reason), ())
                # Whose error it is stands before it already.
                texts.setdefault(label, {}).update(dict.fromkeys(text.removeprefix(f"{label}: ") for text in own))
            for reason, count in zip(reasons.tolist(), counts.tolist(), strict=True):
                if reason != KEPT:
                    lost.setdefault(label, Counter())[columns.reasons[reason]] += count
    verb = "flagged or failed" if include_flagged else "left out"
    notes = {}
    for label, why_lost in lost.items():
        count = sum(why_lost.values())
        why = ", ".join(f"{reason} {n}" for reason, n in why_lost.most_common())
        hint = "; --include-flagged shows the flagged ones" if count == total[label] and not include_flagged else ""
        if label in memory and any(SPOIL_TIMES.issuperset(reason.split("+")) for reason in why_lost):
            hint += "; the memory of those that were only slowed counts"
        said = f" ({'; '.join(map(plain, texts[label]))})" if texts.get(label) else ""
        notes[f"{label}: {count} of {total[label]} measured requests {verb}: {why}{said}{hint}"] = count / total[label]
    return notes


def unmeasured(runs: Iterable[Run], engines: Iterable[str]) -> list[str]:
    """Return one sentence an engine of which no measured request counts: that nothing was measured, and why.

    Args:
        runs: of one group.
        engines: labels of those that have no value.
    """
    runs = list(runs)
    notes = []
    for label in engines:
        reasons: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for run in runs:
            columns = run.columns
            mine = columns.engine == (columns.engines.index(label) if label in columns.engines else -1)
            for row in np.flatnonzero(mine & (columns.excluded != KEPT)).tolist():
                reason, phase = columns.reasons[int(columns.excluded[row])], int(columns.phase[row])
                if phase == MEASURE:
                    reasons[reason] += 1
                elif reason in FAILED:
                    lost[f"{reason} in {PHASES[phase]}"] += 1
        total = sum(reasons.values())
        why = ", ".join(f"{reason} {n}" for reason, n in (reasons or lost).most_common())
        if not total:
            what = f"every launch failed first: {why}" if lost else "it has no request in the samples"
        elif FAILED.isdisjoint(reasons):
            hint = "the figures are theirs, compared with nothing; cmp run --wait-idle waits for a quiet machine"
            what = f"all {total} requests are flagged ({why}); {hint}"
        else:
            what = f"none of {total} requests ended well and unflagged: {why}"
        notes.append(f"{label}: nothing was measured: {what}")
    return notes


def invalid_cells(runs: Iterable[Run]) -> list[str]:
    """Return one sentence for every engine and cell that the load generator spoiled in every launch.

    What is left out altogether has no table of its own, so it must be told apart from what was never measured.
    """
    late: dict[tuple[str, str], bool] = {}
    runs = list(runs)
    if not any(Flag.LATE_DISPATCH in reason.split("+") for run in runs for reason in run.columns.reasons):
        return []
    for run in runs:
        columns = run.columns
        # A request that was never answered carries its status, whatever the generator did.
        phase = (columns.phase == MEASURE) & ~columns.failed()
        spoilt = columns.flagged(Flag.LATE_DISPATCH)
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
    # A median that the clock did not resolve tells nothing.
    times = np.concatenate([np.empty(0), *(part / np.median(part) for part in parts if np.median(part) > 0)])
    if far := int((times > FAR_OUT).sum()):
        raised = _percent(float(times.mean() / times[times <= FAR_OUT].mean()) - 1)
        notes.append(
            f"{engine}: {far} of {len(times)} values are more than {FAR_OUT:.0f} times the median of their launch (up "
            f"to {times.max():,.0f} times); no flag explains them, so they stay and raise the mean by {raised}: "
            "read the median (p50)"
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
    mean = launches.means.mean()
    spread = float(launches.means.std(ddof=1) / mean) if len(launches.means) > 1 and mean > 0 else math.nan
    if spread > NOTABLE_SPREAD:
        notes.append(f"{engine}: launch means spread by {_percent(spread)}, more than 5 % from launch to launch")
    return notes


def imported(runs: Iterable[Run]) -> list[str]:
    """Return what is known too little of runs that came from other tools.

    Requests of one launch are correlated, so nothing can be tested with one; and a file counts as a launch without
    any proof that the engine was started anew for it.
    """
    launches: dict[str, set[tuple[str, str]]] = {}
    told: dict[str, int] = {}
    for run in runs:
        if run.manifest.scenario.get("source_tool") is None:
            continue
        columns = run.columns
        for engine, launch in sorted({*zip(columns.engine.tolist(), columns.launch.tolist(), strict=True)}):
            launches.setdefault(columns.engines[engine], set()).add((run.manifest.run_id, columns.launches[launch]))
        for label, name in sorted({(average.engine, average.launch) for average in run.told}):
            launches.setdefault(label, set()).add((run.manifest.run_id, name))
            told[label] = told.get(label, 0) + 1
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
    if told:
        which = ", ".join(f"{label} ({count} of {len(launches[label])} launches)" for label, count in told.items())
        notes.append(
            f"averages of another tool: {which}; one file is one launch mean, without quantiles and without what only "
            "single requests show"
        )
    return notes


def _percent(value: float) -> str:
    return f"{abs(value):.1%}".replace("%", " %")


def _slower(growth: float) -> str:
    return "slower" if growth > 0 else "faster"
