"""Means, ratios, corrections, verdicts, ranks: the second half of the second implementation (see recomputed.py)."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from recomputed import HIGHER, NOT_COMPARED, ONE_IS_ENOUGH, PER_REQUEST, SIGNED, Block, Launch, Means
from scipy import stats

Number = float | None
Found = dict[str, Any]


def replicates(launches: Mapping[Block, Launch]) -> list[float]:
    """Return launch means, or means of runs where there are several."""
    runs: dict[int, list[float]] = {}
    for (run, _), launch in sorted(launches.items()):
        runs.setdefault(run, []).append(launch.value)
    return [float(np.mean(v)) for v in runs.values()] if len(runs) > 1 else next(iter(runs.values()))


def interval(values: Sequence[float], *, signed: bool) -> tuple[float, float, float]:
    """Return mean and 95 % limits: of the logarithm by the delta method, or of the mean itself where it is signed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    if signed or mean <= 0:
        return mean, mean - half, mean + half
    return mean, mean * math.exp(-half / mean), mean * math.exp(half / mean)


def summaries(means: Means) -> dict[tuple[str, str, str], Found]:
    """Return every engine by itself."""
    found = {}
    for key, launches in means.items():
        mean, low, high = interval(replicates(launches), signed=key[2] in SIGNED)
        single = [launch.value for launch in launches.values()]
        values = [v for launch in launches.values() for v in launch.values]
        quantiles = {
            f"p{round(100 * q)}": float(np.quantile(values, q))
            if len(values) >= math.ceil(math.log(0.025) / math.log(max(q, 1 - q)))
            else math.nan
            for q in (0.5, 0.9, 0.95, 0.99)
        }
        spread = float(np.std(single, ddof=1)) / mean if len(single) > 1 and mean > 0 else math.nan
        counts = {"n_launches": len(launches), "n_samples": sum(launch.requests for launch in launches.values())}
        found[key] = {"mean": mean, "ci_low": low, "ci_high": high, "cv_launches": spread, **quantiles, **counts}
    return found


class Test:
    """A log ratio with its standard error and degrees of freedom."""

    def __init__(self, base: Mapping[Block, Launch], other: Mapping[Block, Launch], least: int) -> None:
        both = sorted(set(base) & set(other))
        self.paired = len(both) >= 0.8 * min(len(base), len(other))
        full = [{b for b, launch in side.items() if launch.requests >= least} for side in (base, other)]
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.paired:
                self.n, self.full = len(both), len(full[0] & full[1])
                d = np.array([np.log(other[b].value) - np.log(base[b].value) for b in both])
                runs = [run for run, _ in both]
                if len(set(runs)) > 1:
                    d = np.array([d[np.array(runs) == run].mean() for run in sorted(set(runs))])
                self.estimate, self.df = float(d.mean()), len(d) - 1
                self.se = float(stats.sem(d)) if len(d) > 1 and np.isfinite(d).all() else math.nan
            else:
                self.n, self.full = min(len(base), len(other)), min(map(len, full))
                a, b = (np.log([launch.value for launch in side.values()]) for side in (base, other))
                self.estimate = float(b.mean() - a.mean())
                va, vb = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
                self.se = math.sqrt(va + vb)
                self.df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
        self.decidable = math.isfinite(self.estimate) and self.se > 1e-12

    def limits(self, confidence: float) -> tuple[float, float]:
        """Return the interval of the ratio."""
        if not self.decidable:
            return math.nan, math.nan
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.se
        return math.exp(self.estimate - half), math.exp(self.estimate + half)

    @property
    def p(self) -> float:
        """Of "the ratio is 1"."""
        return float(2 * stats.t.sf(abs(self.estimate) / self.se, self.df)) if self.decidable else math.nan

    @property
    def equivalence_p(self) -> float:
        """Of "the ratio is outside 3 %"."""
        if not self.decidable:
            return math.nan
        room = math.log(1.03)
        return float(max(stats.t.sf((room + s * self.estimate) / self.se, self.df) for s in (-1, 1)))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method: the largest of (m - i + 1) p of those that are no larger."""
    known = sorted(x for x in p if not math.isnan(x))
    scaled = [min(1.0, (len(known) - i) * x) for i, x in enumerate(known)]
    return [max(scaled[: known.index(x) + known.count(x)]) if not math.isnan(x) else math.nan for x in p]


def holm_divisors(p: Sequence[float]) -> list[float]:
    """Return by how much alpha is divided for each test so that p below it means rejected by Holm's method."""
    known = sorted(x for x in p if not math.isnan(x))
    m = len(known)
    return [
        max(1, m)
        if math.isnan(x)
        else max((m - i) * y for i, y in enumerate(known) if y <= x) / x
        if x > 0
        else m - known.index(x)
        for x in p
    ]


def hochberg(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Benjamini's and Hochberg's method."""
    known = sorted(x for x in p if not math.isnan(x))
    scaled = [min(1.0, len(known) * x / (i + 1)) for i, x in enumerate(known)]
    return [min(scaled[known.index(x) :]) if not math.isnan(x) else math.nan for x in p]


def comparisons(means: Means, baseline: str, primary: str) -> dict[tuple[str, str, str], Found]:
    """Return every engine against the baseline on every metric that is compared."""
    tests: dict[tuple[str, str, str], Test] = {}
    for (engine, cell, metric), launches in means.items():
        of = metric.rpartition("_p")[0] if metric.rpartition("_p")[0] in PER_REQUEST else metric
        if engine != baseline and of not in NOT_COMPARED and (baseline, cell, metric) in means:
            least = 1 if of in ONE_IS_ENOUGH else 10
            tests[engine, cell, metric] = Test(means[baseline, cell, metric], launches, least)
    found: dict[tuple[str, str, str], Found] = {}
    for is_primary, correct in ((True, holm), (False, hochberg)):
        family = {key: test for key, test in tests.items() if (key[2] == primary) == is_primary}
        adjusted = correct([test.p for test in family.values()])
        equal = correct([test.equivalence_p for test in family.values()])
        size = max(1, sum(test.decidable for test in family.values()))
        for (key, test), p, tost in zip(family.items(), adjusted, equal, strict=True):
            low, high = test.limits(0.95)
            sci = test.limits(1 - 0.05 / size) if is_primary else (math.nan, math.nan)
            better = (test.estimate > 0) == (key[2].rpartition("_p")[0] in HIGHER or key[2] in HIGHER)
            verdict = "inconclusive"
            if test.full < 10:
                verdict = "withheld"
            elif (low > 1 or high < 1) and p < 0.05:
                verdict = "faster" if better else "slower"
            elif tost < 0.05:
                verdict = "equivalent"
            found[key] = {
                "ratio": math.exp(test.estimate) if math.isfinite(test.estimate) else math.nan,
                "ci_low": low,
                "ci_high": high,
                "sci_low": sci[0],
                "sci_high": sci[1],
                "p_value": test.p,
                "p_adjusted": p,
                "verdict": verdict,
                "n_launches": test.n,
                "mde": _detectable(test, 0.05 / size if is_primary else 0.05),
            }
    return found


def _detectable(test: Test, alpha: float) -> float:
    if not test.decidable:
        return math.nan
    return math.expm1((stats.t.ppf(1 - alpha / 2, test.df) + stats.t.ppf(0.8, test.df)) * test.se)


def rankings(means: Means, primary: str) -> dict[str, dict[str, Found]]:
    """Return for every cell the engines with rank, ratio to the best, and from whom they were told apart."""
    found: dict[str, dict[str, Found]] = {}
    for cell in {cell for _, cell, metric in means if metric == primary}:
        sides = {
            engine: launches for (engine, at, metric), launches in means.items() if (at, metric) == (cell, primary)
        }
        sign = 1 if primary in HIGHER else -1
        level = {e: np.mean(replicates({b: Launch(math.log(x.value)) for b, x in m.items()})) for e, m in sides.items()}
        order = sorted(sides, key=lambda e: -sign * level[e])
        pairs = list(itertools.combinations(order, 2))
        tests = [Test(sides[a], sides[b], 1 if primary in ONE_IS_ENOUGH else 10) for a, b in pairs]
        differ = {
            pair
            for pair, test, p in zip(pairs, tests, holm([test.p for test in tests]), strict=True)
            if test.full >= 10 and p < 0.05 and (test.limits(0.95)[0] > 1 or test.limits(0.95)[1] < 1)
        }
        divisors = dict(zip(pairs, holm_divisors([test.p for test in tests]), strict=True))
        decided = bool(tests) and all(test.full >= 10 for test in tests)
        rows: dict[str, Found] = {}
        for engine in order:
            worse_than = sum(b == engine for _, b in differ)
            row: Found = {
                "rank": worse_than + 1 if decided else None,
                "mean": float(np.mean(replicates(sides[engine]))),
            }
            if engine != order[0]:
                test = tests[pairs.index((order[0], engine))]
                low, high = test.limits(1 - 0.05 / divisors[order[0], engine])
                row |= {"ratio_to_best": math.exp(test.estimate), "ci_low": low, "ci_high": high}
            rows[engine] = row
            row["differs_from"] = {a if b == engine else b for a, b in differ if engine in (a, b)}
        found[cell] = rows
    return found


def cell_of(record: Mapping[str, Any]) -> str:
    """Return the cell of a record of the report as text."""
    return json.dumps(record["cell"], sort_keys=True)
