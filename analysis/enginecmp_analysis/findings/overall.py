"""Findings over several cells or metrics: the mean ratio of a scenario, missed saturation, shares of components."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from enginecmp.format.records import Cell
from enginecmp_analysis.data.cells import is_open
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.launches import Block
from enginecmp_analysis.data.sweep import saturation
from enginecmp_analysis.data.windows import Place
from enginecmp_analysis.findings.profile import profiled
from enginecmp_analysis.judge.compare import by_block
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval
from enginecmp_analysis.statistics.variance import replicates

OFFERED = frozenset(
    {"throughput_tokens_per_second", "requests_per_second", "goodput_requests_per_second", "goodput_tokens_per_second"}
)
"""Rates that no engine can raise above what it is offered."""

SATURATION = "saturation_requests_per_second"

_WHY_ABSENT = {
    SATURATION: "no rate gave an undisturbed window",
    "goodput_requests_per_second": "the scenario has no limits under [goodput]",
    "goodput_tokens_per_second": "the scenario has no limits under [goodput]",
    "itl_seconds": "the engine hands out several tokens at once",
    "tpot_seconds": "it takes two output tokens",
    "decode_tokens_per_second": "it takes two output tokens",
}
"""Metric → the usual reason why launches with good requests have none of it."""


def geometric_means(group: GroupResult) -> Iterator[Finding]:
    """Yield the geometric mean over cells of each engine's primary ratio to the baseline.

    Only with several cells, and only if every cell has a ratio: a mean over other cells would be another number.
    Rates in an open loop are those of the arrivals, whatever the engine, so there is none over such cells. One mean
    log ratio a block, a t over the blocks that hold all cells.
    """
    metric, means = group.context.primary_metric, group.means
    cells = list(dict.fromkeys(cell for _, cell, name in means if name == metric))
    offered = metric in OFFERED and any(cell is not None and is_open(cell) for cell in cells)
    if len(cells) < 2 or offered:
        return
    for baseline, engine in group.context.pairs(every=False):
        if not all((label, cell, metric) in means for label in (baseline, engine) for cell in cells):
            continue
        sides = [[by_block(means[label, cell, metric]) for cell in cells] for label in (baseline, engine)]
        blocks: list[Block] = [b for b in sides[0][0] if all(b in found for side in sides for found in side)]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.array(
                [
                    np.mean([np.log(side[b]) - np.log(base[b]) for base, side in zip(*sides, strict=True)])
                    for b in blocks
                ]
            )
        if len(logs) < 2 or not np.isfinite(logs).all():
            continue
        over = replicates(logs, [run for run, _ in blocks])
        mean, low, high = (math.exp(x) for x in mean_interval(over))
        yield Finding(
            scenario=group.context.scenario,
            topic="geometric mean",
            engine=engine,
            cell=None,
            verdict="ratio",
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=len(blocks),
            text=f"{mean:.3f}× [{low:.3f}, {high:.3f}] of {baseline} in {metric}, over {len(cells)} cells "
            f"({len(blocks)} blocks)",
        )


def missed_saturation(group: GroupResult, steady: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    """Yield for every sweep without a capacity how much the engine kept up with, or why there is none.

    Where a capacity is not what the scenario is about, one rate alone is no failed sweep, and nothing is said of it.
    """
    missed: dict[tuple[str, Cell], list[float]] = {}
    unfit: dict[tuple[str, Cell], str] = {}
    for run, places in zip(group.runs, steady, strict=True):
        for engine in dict.fromkeys(place.engine for place in places):
            found = saturation(run.columns, [place for place in places if place.engine == engine])
            for sweep, top in found.missed.items():
                missed.setdefault((engine, sweep), []).append(top)
            unfit |= {(engine, sweep): why for sweep, why in found.unfit.items()}
    for (engine, sweep), tops in missed.items():
        text = (
            f"saturation was not reached, or not for long: at {float(np.median(tops)):.3g} requests/s, the most that "
            "was offered, too few requests had to wait"
        )
        yield _no_capacity(group, engine, sweep, "not reached", float(np.median(tops)), text)
    if group.context.primary_metric != SATURATION:
        return
    for (engine, sweep), why in unfit.items():
        if (engine, sweep) not in missed and (engine, sweep, SATURATION) not in group.means:
            yield _no_capacity(group, engine, sweep, "not measured", math.nan, f"no capacity: {why}")


def _no_capacity(group: GroupResult, engine: str, sweep: Cell, verdict: str, top: float, text: str) -> Finding:
    return Finding(
        scenario=group.context.scenario,
        topic="saturation",
        engine=engine,
        cell=sweep,
        verdict=verdict,
        value=top,
        ci_low=top,
        ci_high=math.nan,
        n_launches=group.context.blocks,
        text=text,
    )


def without_primary(group: GroupResult, findings: Iterable[Finding], engines: Iterable[str]) -> list[str]:
    """Return one sentence an engine that has values, but none of the metric that the scenario is about.

    Args:
        group: pooled runs.
        findings: of the group: they tell why a sweep gave nothing.
        engines: those that have values.
    """
    metric = group.context.primary_metric
    have = {engine for engine, _, name in group.means if name == metric}
    told = {finding.engine: finding.text for finding in findings if finding.topic == "saturation"}
    return [
        f"{engine}: no {metric}: {told.get(engine, _WHY_ABSENT.get(metric, 'no launch has what it is made of'))}"
        for engine in engines
        if metric and engine not in have
    ]


def components(group: GroupResult) -> Iterator[Finding]:
    """Yield the shares of the components of a forward pass, largest first."""
    for engine, cell, found in profiled(group):
        means = {name: float(launches.replicates().mean()) for name, launches in found.items()}
        total = sum(means.values())
        if total <= 0:
            continue
        shares = {name: value / total for name, value in sorted(means.items(), key=lambda item: -item[1])}
        yield Finding(
            scenario=group.context.scenario,
            topic="components",
            engine=engine,
            cell=cell,
            verdict="shares",
            value=total,
            ci_low=math.nan,
            ci_high=math.nan,
            n_launches=max(len(launches.means) for launches in found.values()),
            text=", ".join(f"{name} {share:.1%}".replace("%", " %") for name, share in shares.items() if share >= 0.001)
            + f" of {total:.4g} s",
            details={f"{name}_share": share for name, share in shares.items()},
        )
