"""The largest load that keeps an SLO: which loads to try next, and what is confirmed.

A bracketing search: the load is doubled while it looks kept, then the gap between the largest load that looks kept and
the smallest that looks broken is halved in logs, and then both ends are measured in launch after launch until each is
proven. What looks is one launch's word; what is proven holds by `keeps` at one of three looks, after 5, 10 and 20
launches, each at a third of the error (Bonferroni), so that looking again proves nothing by luck. An end that is not
proven after 20 launches is left open, and the search goes on beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.launches import launch_means, measured
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.decisions.slo import CONFIDENCE, Objective, all_objectives, keeps, required_requests
from enginecmp_analysis.schema.decisions import LimitRow

LOOKS = (5, 10, 20)
"""Launches at a load after which it is asked whether the SLO is proven kept or broken there."""

LOOK_CONFIDENCE = 1 - (1 - CONFIDENCE) / len(LOOKS)

MOST_EMPTY = 3
"""Launches at a load without a request that counts, after which nothing more is tried there."""

RESOLUTION = 1.1
"""Rates that differ by less than this factor are not told apart."""

LEAST_RATE, MOST_RATE = 0.01, 10_000.0

State = Literal["kept", "broken", "open"]


class Seen(NamedTuple):
    """What was measured of one engine at one load.

    Attributes:
        launches: launches with a request that counts, or that failed.
        empty: launches without one.
        looks_kept: whether no objective has more slow requests than it allows; None without a request.
        state: what is proven.
        requests: that count.
        slow: requests beyond the limit of the objective that has most of them.
    """

    launches: int
    empty: int
    looks_kept: bool | None
    state: State
    requests: int
    slow: int

    @property
    def spent(self) -> bool:
        """Whether no further launch is made at this load although nothing is proven."""
        return self.state == "open" and (self.launches >= LOOKS[-1] or (not self.launches and self.empty >= MOST_EMPTY))


@dataclass(frozen=True, slots=True)
class Range:
    """Which loads there are.

    Attributes:
        least: smallest.
        most: largest.
        whole: whether loads are whole numbers (users), or rates.
    """

    least: float
    most: float
    whole: bool

    def between(self, low: float, high: float) -> float | None:
        """Return the load in the middle of a gap, in logs; None where the gap is closed."""
        if self.whole:
            return None if high - low <= 1 else float(min(high - 1, max(low + 1, round(math.sqrt(low * high)))))
        return None if high / low <= RESOLUTION else float(f"{math.sqrt(low * high):.3g}")


class Bracket(NamedTuple):
    """Where the limit is believed to be: largest load kept, smallest broken; None where there is none yet."""

    low: float | None
    high: float | None


def bracket(seen: Mapping[float, Seen]) -> Bracket:
    """Return the ends by what is proven, else by what it looks like; loads that were given up are no ends."""
    usable = {load: found for load, found in seen.items() if not found.spent and found.looks_kept is not None}
    broken = [load for load, found in usable.items() if found.state == "broken" or _only_looks(found, kept=False)]
    high = min(broken, default=None)
    kept = [load for load, found in usable.items() if found.state == "kept" or _only_looks(found, kept=True)]
    below = [load for load in kept if high is None or load < high]
    return Bracket(max(below, default=None), high)


def _only_looks(found: Seen, *, kept: bool) -> bool:
    return found.state == "open" and found.looks_kept is kept


def next_loads(seen: Mapping[float, Seen], allowed: Range, start: float = 1.0) -> list[float]:
    """Return the loads at which an engine's next launch measures; none where the search is over.

    Args:
        seen: what was measured so far.
        allowed: which loads there are.
        start: the first one.
    """
    unknown = [load for load, found in seen.items() if found.looks_kept is None and not found.spent]
    if unknown:
        return unknown[:1]
    if not seen:
        return [start]
    low, high = bracket(seen)
    following = _following(low, high, allowed)
    while following is not None and following in seen and seen[following].spent:
        # What could not be proven is passed by.
        following = _beside(following, low, high, allowed)
    if following is not None and following not in seen:
        return [following]
    ends = [(low, "kept"), (high, "broken")]
    return [load for load, wanted in ends if load is not None and seen[load].state != wanted and not seen[load].spent]


def _following(low: float | None, high: float | None, allowed: Range) -> float | None:
    """Return the load that narrows the bracket; None where it is closed."""
    if low is not None and high is not None:
        return allowed.between(low, high)
    if low is not None:
        return min(allowed.most, 2 * low) if low < allowed.most else None
    if high is not None:
        less = max(allowed.least, high // 2 if allowed.whole else high / 2)
        return less if high > allowed.least else None
    return None


def _beside(load: float, low: float | None, high: float | None, allowed: Range) -> float | None:
    """Return the load that follows one that was given up, towards the end that is still to be found."""
    if low is not None and high is not None:
        return None
    return _following(load, None, allowed) if low is not None else _following(None, load, allowed)


def least_requests(objectives: Iterable[Objective]) -> int:
    """Return the requests of a launch with which the first look can prove all objectives kept."""
    return max(math.ceil(required_requests(o.quantile, 1, LOOK_CONFIDENCE) / LOOKS[0]) for o in objectives)


def allowed_loads(find_max: str, most_users: int) -> Range:
    """Return which loads a search may try."""
    return Range(1, most_users, whole=True) if find_max == "concurrency" else Range(LEAST_RATE, MOST_RATE, whole=False)


def load_of(cell: Cell, find_max: str) -> float:
    """Return the load that a cell stands for."""
    return float(cell.concurrency if find_max == "concurrency" else cell.rate_per_second or 0.0)


def measured_loads(
    run: Run, objectives: Sequence[Objective], find_max: str, before: int | None = None
) -> dict[str, dict[float, Seen]]:
    """Return engine → load → what was measured there.

    Args:
        run: of the search.
        objectives: all of which must be kept.
        find_max: which load was searched for.
        before: only blocks below this one; None takes all.
    """
    columns = run.columns
    keep = measured(columns)
    if before is not None:
        keep = keep & (columns.block < before)
    means = launch_means([run], {o.metric for o in objectives}, [keep])
    rows = np.flatnonzero((columns.phase == MEASURE) & ((columns.block < before) if before is not None else True))
    tried: dict[tuple[str, Cell], set[int]] = {}
    failed: dict[tuple[str, Cell], dict[int, int]] = {}
    lost = columns.failed()
    for row in rows.tolist():
        place = columns.engines[int(columns.engine[row])], columns.cells[int(columns.cell[row])]
        block = int(columns.block[row])
        tried.setdefault(place, set()).add(block)
        if lost[row]:
            of_block = failed.setdefault(place, {})
            of_block[block] = of_block.get(block, 0) + 1
    found: dict[str, dict[float, Seen]] = {}
    for (engine, cell), blocks in tried.items():
        parts: dict[int, dict[Objective, np.ndarray[tuple[int], np.dtype[np.float64]]]] = {}
        for objective in objectives:
            launches = means.get((engine, cell, objective.metric))
            if launches is not None:
                for (_, block), values in zip(launches.blocks, launches.per_launch(), strict=True):
                    parts.setdefault(block, {})[objective] = values
        for block, count in failed.get((engine, cell), {}).items():
            own = parts.setdefault(block, {})
            for objective in objectives:
                own[objective] = np.r_[own.get(objective, np.empty(0)), np.full(count, np.inf)]
        found.setdefault(engine, {})[load_of(cell, find_max)] = _seen(
            [parts[block] for block in sorted(parts)], objectives, len(blocks - parts.keys())
        )
    return found


def _seen(
    launches: Sequence[Mapping[Objective, np.ndarray[tuple[int], np.dtype[np.float64]]]],
    objectives: Sequence[Objective],
    empty: int,
) -> Seen:
    if not launches:
        return Seen(0, empty, None, "open", 0, 0)
    state: State = "open"
    for look in LOOKS:
        if look > len(launches) or state != "open":
            break
        states = [
            keeps([part.get(o, np.empty(0)) for part in launches[:look]], o.quantile, o.limit, LOOK_CONFIDENCE).state
            for o in objectives
        ]
        state = "broken" if "broken" in states else "kept" if all(s == "kept" for s in states) else "open"
    counts = []
    for objective in objectives:
        values = np.concatenate([np.empty(0), *(part.get(objective, np.empty(0)) for part in launches)])
        slow = int((values > objective.limit).sum())
        counts.append((slow, len(values), slow <= (1 - objective.quantile) * len(values)))
    slow, n, _ = max(counts)
    return Seen(len(launches), empty, all(kept for *_, kept in counts), state, n, slow)


def limits(scenario: str, run: Run) -> list[LimitRow]:
    """Return what a search found, one row an engine; none where the run is no search.

    Args:
        scenario: label of the group.
        run: of the search.
    """
    find_max = str(run.manifest.scenario.get("find_max") or "")
    texts = run.manifest.scenario.get("slo") or ()
    if not find_max or not texts or not isinstance(texts, list | tuple):
        return []
    objectives = all_objectives(map(str, texts))
    found = measured_loads(run, objectives, find_max)
    labels = [e.name for e in run.manifest.engines if e.options.get("timed", True)]
    return [_row(scenario, label, run, find_max, objectives, found.get(label, {})) for label in labels]


def _row(
    scenario: str, engine: str, run: Run, find_max: str, objectives: Sequence[Objective], seen: Mapping[float, Seen]
) -> LimitRow:
    broken = min((load for load, s in seen.items() if s.state == "broken"), default=None)
    below = [load for load, s in seen.items() if s.state == "kept" and (broken is None or load < broken)]
    kept = max(below, default=None)
    unit = "users" if find_max == "concurrency" else "requests/s"
    parts = ["no load is proven to keep the SLO", "none is proven to break it"]
    if kept is not None:
        parts[0] = f"keeps the SLO at {kept:g} {unit} ({_evidence(seen[kept])})"
    if broken is not None:
        parts[1] = f"breaks it at {broken:g} ({_evidence(seen[broken])})"
    if seen and kept is None and broken is None:
        low, high = bracket(seen)
        guess = [f"{low:g} looks kept" if low is not None else "", f"{high:g} looks broken" if high is not None else ""]
        parts.append(", ".join(filter(None, guess)) or "no request counts")
    return LimitRow(
        scenario=scenario,
        engine=engine,
        load=find_max,
        unit=unit,
        slo=[str(objective) for objective in objectives],
        kept=kept,
        broken=broken,
        tried=sorted(seen),
        run=run.manifest.run_id,
        text=f"{engine}: {'; '.join(parts)}" if seen else f"{engine}: nothing was measured",
    )


def _evidence(found: Seen) -> str:
    return f"{found.slow} of {found.requests} requests slow, {found.launches} launches, 99 %"
