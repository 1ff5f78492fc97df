"""How long the answers are where requests end by themselves: each engine's, and beside the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import MEASURE
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.own_lengths import ends_itself, lengths_note, lengths_of
from enginecmp_analysis.judge.compare import match
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.permutation import sign_flip_p
from enginecmp_analysis.statistics.student import positive_interval

METRIC = "output_tokens"
DIFFER = 0.05
"""Mean lengths are said to differ below this p."""


def answer_lengths(group: GroupResult) -> Iterator[Finding]:
    """Yield the output lengths of every engine in every cell whose requests end by themselves.

    The mean of a launch is one value, a t over launches; beside the baseline a sign-flip permutation of the log ratios
    of blocks. Also adds to the notes of the cells what is compared there and how.
    """
    for cell, lengths in lengths_of(group.runs, group.kept).items():
        group.context.notes.setdefault(cell, []).append(lengths_note(lengths))
        for engine in group.context.engines:
            launches = group.means.get((engine, cell, METRIC))
            if launches is not None:
                yield _finding(group, engine, cell, launches.values, launches.replicates())


def _finding(
    group: GroupResult, engine: str, cell: Cell, values: NDArray[np.float64], means: NDArray[np.float64]
) -> Finding:
    mean, low, high = positive_interval(means)
    ended = _ended(group, engine, cell)
    quarter, half, rest = np.quantile(values, [0.25, 0.5, 0.75])
    limits = f" [{low:.3g}, {high:.3g}]" if math.isfinite(low) else ""
    text = (
        f"answers have {mean:.3g} tokens{limits}, half of them {quarter:.0f} to {rest:.0f}; {ended:.0%} end by "
        "themselves"
    )
    p, baseline = math.nan, group.means.get((group.context.baseline, cell, METRIC))
    if baseline is not None and engine != group.context.baseline:
        matched = match(baseline, group.means[engine, cell, METRIC]).replicates()
        if matched.paired and len(matched.engine):
            logs = np.log(matched.engine) - np.log(matched.baseline)
            p = sign_flip_p(logs)
            text += f"; {math.exp(float(logs.mean())):.3f} × the tokens of {group.context.baseline} (p={p:.2g})"
    differs = p < DIFFER
    return Finding(
        scenario=group.context.scenario,
        topic="output length",
        engine=engine,
        cell=cell,
        verdict="other lengths" if differs else "lengths",
        value=mean,
        ci_low=low,
        ci_high=high,
        n_launches=len(means),
        text=text,
        notable=differs,
        details={"p25": float(quarter), "p50": float(half), "p75": float(rest), "ended_share": ended, "p_value": p},
    )


def _ended(group: GroupResult, engine: str, cell: Cell) -> float:
    """Return the share of an engine's answers that are shorter than they might be."""
    shorter = of = 0
    for run, kept in zip(group.runs, group.kept, strict=True):
        columns = run.columns
        if engine not in columns.engines or cell not in columns.cells:
            continue
        mine = kept & (columns.phase == MEASURE) & ends_itself(columns)
        mine &= columns.engine == columns.engines.index(engine)
        mine &= columns.cell == columns.cells.index(cell)
        shorter += int((columns.output_tokens[mine] < columns.metric("asked_output_tokens")[mine]).sum())
        of += int(mine.sum())
    return shorter / of if of else math.nan
