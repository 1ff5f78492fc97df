"""Findings about memory: does an engine leak, and does its KV cache follow the formula?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from enginecmp.format.records import Cell
from enginecmp_analysis.data.group import GroupResult
from enginecmp_analysis.data.memory import lasting_growth, leak_resolution
from enginecmp_analysis.data.windows import Place
from enginecmp_analysis.schema.stats import Finding
from enginecmp_analysis.statistics.student import mean_interval, positive_interval
from enginecmp_analysis.statistics.variance import replicates

MATCHES = 0.02
"""A measured size this close to a formula's agrees with it: caches are padded to blocks of tokens."""

LEAST_LAUNCHES = 3

LONG = 400
"""With so many requests a launch it is worth a line that nothing leaks."""

WIDTHS = {4.0: "float32", 2.0: "float16", 34 / 32: "Q8_0", 18 / 32: "Q4_0"}
"""Bytes a value of the usual cache types; the quantized ones hold 32 values and a float16 scale."""


def leak_findings(group: GroupResult, steady: Sequence[Sequence[Place]]) -> Iterator[Finding]:
    """Yield for every engine and cell with launches long enough whether resident memory goes on growing."""
    grown: dict[tuple[str, Cell], list[tuple[int, tuple[float, float], int]]] = {}  # run, growth, requests
    for number, (run, places) in enumerate(zip(group.runs, steady, strict=True)):
        memory = run.columns.metric("rss_bytes")
        for place in places if "rss_bytes" in run.columns.metrics else []:
            for part in place.parts(run.columns):
                found = lasting_growth(memory[part])
                if math.isfinite(found[0]):
                    grown.setdefault((place.engine, place.cell), []).append((number, found, len(part)))
    for (engine, cell), several in grown.items():
        runs, launches, lengths = zip(*several, strict=True)
        n, requests = len(launches), int(np.median(lengths))
        verdict, mean, low, high = judge_leak(launches, requests, runs)
        resolution = leak_resolution(requests)
        if verdict == "open":
            text = f"growth {mean:,.0f} bytes a request; it takes {LEAST_LAUNCHES} launches to tell"
        elif verdict == "leaks":
            text = f"leaks {mean:,.0f} bytes a request [{low:,.0f}, {high:,.0f}]"
        else:
            text = f"no leak seen: at most {max(high, resolution):,.0f} bytes a request"
        yield Finding(
            scenario=group.context.scenario,
            topic="leak",
            engine=engine,
            cell=cell,
            verdict=verdict,
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=n,
            text=f"{text} ({n} launches of {requests} requests)",
            notable=verdict == "leaks" or requests >= LONG,
            details={"resolution_bytes_per_request": resolution},
        )


def judge_leak(
    launches: Sequence[tuple[float, float]], requests: int, runs: Sequence[int] = ()
) -> tuple[str, float, float, float]:
    """Return the verdict on the growth of some launches, its mean, and its 95 % limits.

    A leak is called when the whole interval of the growth is above what whole pages can show, and the whole
    interval of what most parts of a launch show is above half of it: a leak goes on evenly. Everything else is no
    proof of one.

    Args:
        launches: from `lasting_growth`, one a launch.
        requests: of a launch.
        runs: number of the run of each launch; limits are over runs where there are several.
    """
    growth, most = np.array(launches).T
    alike = runs or [0] * len(launches)
    mean, low, high = mean_interval(replicates(growth, alike))
    if len(growth) < LEAST_LAUNCHES:
        return "open", mean, low, high
    leaking = low > leak_resolution(requests) and mean_interval(replicates(most - growth / 2, alike))[1] > 0
    return "leaks" if leaking else "no leak", mean, low, high


def kv_caches(group: GroupResult) -> Iterator[Finding]:
    """Yield for every engine what its KV cache takes a token, beside the formula.

    A token takes layers x kv_heads x (head_dim + value_dim) values: one key and one value vector a head and layer.
    """
    shape = group.runs[0].manifest.model.shape
    names = ("layers", "kv_heads", "head_dim", "value_dim")
    values = 0
    if all(name in shape for name in names):
        values = shape["layers"] * shape["kv_heads"] * (shape["head_dim"] + shape["value_dim"])
    for (engine, _, metric), launches in group.means.items():
        if metric != "kv_bytes_per_token":
            continue
        mean, low, high = positive_interval(launches.replicates())
        verdict, text = _against_formula(mean, values)
        yield Finding(
            scenario=group.context.scenario,
            topic="kv cache",
            engine=engine,
            cell=None,
            verdict=verdict,
            value=mean,
            ci_low=low,
            ci_high=high,
            n_launches=len(launches.means),
            text=text,
            details={"formula_float16_bytes": 2.0 * values, "formula_float32_bytes": 4.0 * values} if values else {},
        )


def _against_formula(measured: float, values: int) -> tuple[str, str]:
    """Return the verdict and the words for a measured size of one token in the cache."""
    told = f"{measured:,.0f} bytes a token"
    if values <= 0:
        return "measured", f"{told}; the shape of the model is not known"
    formula = f"{2 * values:,} (float16) or {4 * values:,} (float32)"
    if measured < 0.01 * 2 * values:
        return (
            "reserved",
            f"does not grow with the request: reserved for the whole context; the formula gives {formula}",
        )
    width, name = min(WIDTHS.items(), key=lambda item: abs(math.log(measured / (values * item[0]))))
    off = measured / (values * width) - 1
    if abs(off) <= MATCHES:
        return f"matches {name}", f"{told}, as the formula gives for {name} ({width * values:,.0f})"
    return "off", f"{told}, {measured / values:.2f} bytes a value; the formula gives {formula}"
