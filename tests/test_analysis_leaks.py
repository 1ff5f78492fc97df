"""Leaks: a planted one is found, allocators that merely move are not taken for one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from simulated_load import findings_of, run_of, sample

from enginecmp.format.records import Cell
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.memory import lasting_growth, leaks
from enginecmp_analysis.findings.memory_findings import judge_leak

Floats = NDArray[np.float64]

CELL = Cell(50, 16, 1)
KB = 1024


def _noise(rng: np.random.Generator, n: int) -> Floats:
    return 300e6 + 4096 * np.rint(rng.normal(0, 3, n))


def _steps(rng: np.random.Generator, n: int) -> Floats:
    """An arena that grows by a megabyte a few times, whenever."""
    where = rng.integers(0, n, size=3)
    return _noise(rng, n) + 1e6 * (np.arange(n)[:, np.newaxis] > where).sum(axis=1)


def _sawtooth(rng: np.random.Generator, n: int) -> Floats:
    """Garbage that is collected every 120 requests."""
    return _noise(rng, n) + 20 * KB * ((np.arange(n) + rng.integers(120)) % 120)


def _wandering(rng: np.random.Generator, n: int) -> Floats:
    return _noise(rng, n) + np.cumsum(rng.choice([-1, 1], n) * 64 * KB * (rng.random(n) < 0.1))


def _settling(rng: np.random.Generator, n: int) -> Floats:
    return _noise(rng, n) + 20e6 * (1 - np.exp(-np.arange(n) / 30))


def _leaking(rng: np.random.Generator, n: int, memory: Callable[[np.random.Generator, int], Floats]) -> Run:
    rows = []
    for block in range(10):
        held = memory(rng, n)
        rows += [
            sample(block, "engine", CELL, i, 0.2 * i, 0.2 * i + 0.1, metrics={"rss_bytes": float(held[i])})
            for i in range(n)
        ]
    return run_of(rows)


@pytest.mark.parametrize("also", [_noise, _steps, _sawtooth, _settling])
def test_a_leak_of_a_kilobyte_a_request_is_found(also: Callable[[np.random.Generator, int], Floats]) -> None:
    rng = np.random.default_rng(1)
    (found,) = findings_of(_leaking(rng, 500, lambda r, n: also(r, n) + KB * np.arange(n)), "leak")
    if also is _sawtooth:
        # Below what is collected and given back it may hide; it must not be overstated.
        assert found.value < 2 * KB
        return
    assert found.verdict == "leaks"
    assert found.value == pytest.approx(KB, rel=0.2)
    assert "leaks" in found.text


def test_allocators_that_step_settle_wander_or_collect_do_not_leak() -> None:
    alarms = {}
    for memory in (_noise, _steps, _sawtooth, _wandering, _settling):
        rng = np.random.default_rng(2)
        runs = [[lasting_growth(memory(rng, 500)) for _ in range(10)] for _ in range(100)]
        alarms[memory.__name__] = sum(judge_leak(run, 500)[0] == "leaks" for run in runs)
    # One-sided at 2.5 %: seven or more of a hundred have a chance below 1.5 %.
    assert all(count <= 6 for count in alarms.values()), alarms


def test_pooled_runs_count_as_runs() -> None:
    # Three runs whose growth differs, each with launches that agree: many launches, and three values.
    growth = [(mean + 0.01 * i, mean + 0.01 * i) for mean in (0.0, 2000.0, 4000.0) for i in range(10)]
    alone, pooled = judge_leak(growth, 500), judge_leak(growth, 500, [run for run in range(3) for _ in range(10)])
    assert (alone[0], pooled[0]) == ("leaks", "no leak")
    low, high = stats.t.interval(0.95, 2, 2000.045, 2000 / np.sqrt(3))
    assert pooled[1:] == pytest.approx((2000.045, low, high))


def test_launches_too_short_for_a_leak_say_nothing_of_it() -> None:
    assert findings_of(_leaking(np.random.default_rng(3), 99, _noise), "leak") == []


def test_memory_that_never_changes_has_no_leak_and_no_spread() -> None:
    run = _leaking(np.random.default_rng(4), 200, lambda _, n: np.full(n, 3e8))
    (found,) = findings_of(run, "leak")
    assert (found.verdict, found.value) == ("no leak", 0.0)
    columns = run.columns
    assert leaks(columns, [np.flatnonzero(columns.launch == 0)]).tolist() == [0.0]
