"""What the machine did meanwhile: utilization, throttling, and whether speed follows clock or temperature."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from enginecmp.format.records import Cell
from enginecmp_analysis.data.columns import Columns
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.stamps import NS
from enginecmp_analysis.data.telemetry import LEAST_READINGS, Telemetry
from enginecmp_analysis.data.windows import Place
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import positive_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SURE = 0.01

LEAST_CORRELATION = 0.3

BINS = 40
"""Requests of a launch are averaged down to so many moments."""

LEAST_BINS = 12

TREND_DEGREE = 3
"""Degree of the polynomial in time that is taken out: warm-up, heating and drifts are smooth, throttling is not."""

SHUFFLES = 999

BUSY = re.compile(r"cpu_busy_cores|gpu\d+_busy_share")
SIGNALS = re.compile(r"cpu_mhz|gpu\d+_sm_mhz|(cpu|gpu\d+)_celsius")
CONDITIONS = {
    "gpu_throttled": "the GPU throttled",
    "cpu_throttled": "the CPU throttled",
    "gpu_foreign_process": "another process used the GPU",
}

Steady = Sequence[Sequence[Place]]


def utilization(group: GroupResult, steady: Steady) -> Iterator[Finding]:
    """Yield how busy CPU and GPUs were in the steady windows of each engine and cell."""
    found: dict[tuple[str, Cell], dict[str, list[float]]] = {}
    for run, place in _with_telemetry(group, steady):
        for begin, end in zip(place.found.begin_ns.tolist(), place.found.end_ns.tolist(), strict=True):
            for name in [name for name in run.series if BUSY.fullmatch(name)]:
                _, values = run.between(name, begin, end)
                if len(values) >= LEAST_READINGS:
                    found.setdefault((place.engine, place.cell), {}).setdefault(name, []).append(float(values.mean()))
    for (engine, cell), names in found.items():
        means = {name: positive_interval(values) for name, values in names.items()}
        first = next(iter(means))
        yield Finding(
            scenario=group.context.scenario,
            topic="utilization",
            engine=engine,
            cell=cell,
            verdict="measured",
            value=means[first][0],
            ci_low=means[first][1],
            ci_high=means[first][2],
            n_launches=max(len(values) for values in names.values()),
            text=", ".join(_busy(name, mean) for name, (mean, _, _) in sorted(means.items())),
            notable=group.context.primary_metric == "throughput_tokens_per_second",
            details={name: mean for name, (mean, _, _) in means.items()},
        )


def _busy(name: str, value: float) -> str:
    if name == "cpu_busy_cores":
        return f"{value:.2f} cores busy"
    return f"GPU {name[3:].partition('_')[0]} {value:.0%} busy".replace("%", " %")


def throttling(group: GroupResult, steady: Steady) -> Iterator[Finding]:
    """Yield for each engine in how many intervals a condition held while it was measured."""
    counts: dict[tuple[str, str], list[int]] = {}
    for run, place in _with_telemetry(group, steady):
        for begin, end in zip(place.found.begin_ns.tolist(), place.found.end_ns.tolist(), strict=True):
            for condition in CONDITIONS:
                counts.setdefault((place.engine, condition), []).append(run.intervals(condition, begin, end))
    for (engine, condition), intervals in counts.items():
        total = sum(intervals)
        if total:
            launches = sum(n > 0 for n in intervals)
            yield Finding(
                scenario=group.context.scenario,
                topic="conditions",
                engine=engine,
                cell=None,
                verdict=condition,
                value=float(total),
                ci_low=np.nan,
                ci_high=np.nan,
                n_launches=len(intervals),
                text=f"{CONDITIONS[condition]} in {total} interval{'' if total == 1 else 's'} "
                f"({launches} of {len(intervals)} measured windows)",
            )


def clock_findings(group: GroupResult, steady: Steady) -> Iterator[Finding]:
    """Yield where the speed of requests follows a clock or a temperature over time, inside launches.

    Two series that both drift are always correlated, which means nothing. So a cubic in time is taken out of both,
    launch by launch, and the correlation is judged against that of the same series shifted against each other in
    time (circular shifts, which keep each series' own correlation). Told when p < .01 and it is not small.
    """
    series: dict[tuple[str, Cell, str], list[tuple[Floats, Floats]]] = {}
    for run, columns, place in _measured(group, steady):
        for i, part in enumerate(place.parts(columns)):
            moments, speed = _speeds(columns, part)
            if len(moments) < LEAST_BINS:
                continue
            for name in [name for name in run.series if SIGNALS.fullmatch(name)]:
                times, values = run.between(name, int(place.found.begin_ns[i]), int(place.found.end_ns[i]))
                if len(times) >= LEAST_BINS and np.ptp(values) > 0 and (values > 0).all():
                    at = np.interp(moments - times[0], (times - times[0]).astype(np.float64), np.log(values))
                    series.setdefault((place.engine, place.cell, name), []).append((at, speed))
    for (engine, cell, name), pairs in series.items():
        r, p = correlated([x for x, _ in pairs], [y for _, y in pairs])
        follows = p < SURE and abs(r) >= LEAST_CORRELATION and (r > 0) == name.endswith("mhz")
        what = "the clock" if name.endswith("mhz") else "the temperature"
        which = "" if name.startswith("cpu") else f" of GPU {name[3:].partition('_')[0]}"
        words = f"throughput follows {what}{which}" if r > 0 else f"throughput falls as {what}{which} rises"
        yield Finding(
            scenario=group.context.scenario,
            topic="clock",
            engine=engine,
            cell=cell,
            verdict="follows" if follows else "no relation shown",
            value=r,
            ci_low=np.nan,
            ci_high=np.nan,
            n_launches=len(pairs),
            text=f"{words} (r={r:.2f}, p{'<0.001' if p < 0.001 else f'={p:.3f}'})",
            notable=follows,
            details={"p_value": p},
        )


def correlated(first: Sequence[Floats], second: Sequence[Floats], seed: int = 0) -> tuple[float, float]:
    """Return the correlation of two series over all launches, smooth trends taken out, and its permutation p.

    Args:
        first: one series a launch, each (n,).
        second: the other ones, of the same lengths.
        seed: of the random shifts.

    Returns:
        Pooled correlation, and the share of random shifts (one for each launch) that give one as far from zero.
    """
    rng = np.random.default_rng(seed)
    total, squares_x, squares_y = 0.0, 0.0, 0.0
    shuffled = np.zeros(SHUFFLES)
    for a, b in zip(first, second, strict=True):
        x, y = _without_trend(a), _without_trend(b)
        products = np.array([float(x @ np.roll(y, shift)) for shift in range(len(x))])
        total += float(products[0])
        shuffled += products[rng.integers(len(products), size=SHUFFLES)]
        squares_x, squares_y = squares_x + float(x @ x), squares_y + float(y @ y)
    scale = float(np.sqrt(squares_x * squares_y))
    if scale <= 0:
        return 0.0, 1.0
    # The observed one is among the possible shifts, so p is never zero.
    extreme = int((np.abs(shuffled) >= abs(total) - 1e-12 * scale).sum())
    return total / scale, (1 + extreme) / (SHUFFLES + 1)


def _without_trend(values: Floats) -> Floats:
    basis = np.vander(np.linspace(-1, 1, len(values)), TREND_DEGREE + 1)
    found: Floats = values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
    return found


def _speeds(columns: Columns, rows: Ints) -> tuple[Ints, Floats]:
    """Return moments and the log speed of requests there, averaged down to `BINS`."""
    spent = (columns.end_ns[rows] - columns.start_ns[rows]).astype(np.float64) * NS
    rows, spent = rows[spent > 0], spent[spent > 0]
    middle = columns.start_ns[rows] + (columns.end_ns[rows] - columns.start_ns[rows]) // 2
    if len(rows) <= BINS:
        return middle, -np.log(spent)
    parts = np.array_split(np.arange(len(rows)), BINS)
    moments = np.array([int(middle[part[0]] + (middle[part[-1]] - middle[part[0]]) // 2) for part in parts])
    return moments, np.array([float(-np.log(spent[part]).mean()) for part in parts])


def _measured(group: GroupResult, steady: Steady) -> Iterator[tuple[Telemetry, Columns, Place]]:
    for run, found in zip(group.runs, steady, strict=True):
        if run.telemetry is not None:
            for place in found:
                yield run.telemetry, run.columns, place


def _with_telemetry(group: GroupResult, steady: Steady) -> Iterator[tuple[Telemetry, Place]]:
    for telemetry, _, place in _measured(group, steady):
        yield telemetry, place
