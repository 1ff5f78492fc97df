"""Trends over time: clocks, throttling, utilization, drift."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from simulated_load import S, findings_of, run_of, sample, shown

from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import simulate_run
from enginecmp_analysis.data.telemetry import Telemetry
from enginecmp_analysis.findings.clocks import correlated

CELL = Cell(50, 16, 1)


# --- clocks --------------------------------------------------------------------------------------------------------


def _clocked(rng: np.random.Generator, speed: Callable[[float], float], clock: Callable[[float], float]) -> Run:
    """Ten launches of about 40 s, read five times a second; both curves are over the launch, 0 to 1."""
    rows: list[Sample] = []
    times, values = [], []
    for block in range(10):
        begin, now, index = 100.0 * block, 100.0 * block, 0
        while now < begin + 40:
            spent = 0.4 / speed((now - begin) / 40) * math.exp(0.05 * rng.standard_normal())
            rows.append(sample(block, "engine", CELL, index, now, now + spent))
            now, index = now + spent, index + 1
        moments = np.arange(begin - 1, begin + 45, 0.2)
        times.append(moments)
        values.append([3000 * clock((t - begin) / 40) * math.exp(0.005 * rng.standard_normal()) for t in moments])
    series = {"cpu_mhz": (np.rint(np.concatenate(times) * S).astype(np.int64), np.concatenate(values))}
    return run_of(rows, telemetry=Telemetry(series))


def test_a_planted_throttle_is_named() -> None:
    def drop(at: float) -> float:
        return 0.7 if 0.4 < at < 0.8 else 1.0

    run = _clocked(np.random.default_rng(6), drop, drop)
    (found,) = findings_of(run, "clock")
    assert found.verdict == "follows"
    assert found.value > 0.6
    assert "throughput follows the clock (r=0." in shown(run)


@pytest.mark.parametrize(
    ("speed", "clock"),
    [
        (lambda at: 1 - 0.3 * at, lambda at: 1 - 0.2 * at),
        (lambda at: 1 + 0.2 * math.exp(-at / 0.3), lambda at: 1 + 0.1 * math.exp(-at / 0.2)),
        (lambda at: 1.0, lambda at: 0.7 if at > 0.6 else 1.0),
        (lambda at: 0.8 if 0.1 < at < 0.3 else 1.0, lambda at: 0.7 if 0.6 < at < 0.8 else 1.0),
    ],
    ids=["both fall", "both settle", "only the clock drops", "they drop apart"],
)
def test_drifts_of_their_own_are_not_taken_for_the_clock(
    speed: Callable[[float], float], clock: Callable[[float], float]
) -> None:
    (found,) = findings_of(_clocked(np.random.default_rng(7), speed, clock), "clock")
    assert found.verdict == "no relation shown"
    assert not found.notable


@pytest.mark.parametrize(("degree", "least", "most"), [(3, 0, 3), (1, 15, 30)], ids=["cubic", "control: a line"])
def test_two_series_that_settle_look_like_the_clock_if_only_a_line_is_taken_out(
    monkeypatch: pytest.MonkeyPatch, degree: int, least: int, most: int
) -> None:
    monkeypatch.setattr("enginecmp_analysis.findings.clocks.TREND_DEGREE", degree)
    rng = np.random.default_rng(13)
    at = np.arange(30) / 30
    called = 0
    for _ in range(30):
        clocks = [0.1 * np.exp(-at / 0.2) + 0.005 * rng.standard_normal(30) for _ in range(10)]
        speeds = [0.1 * np.exp(-at / 0.3) + 0.05 * rng.standard_normal(30) for _ in range(10)]
        called += correlated(clocks, speeds)[1] < 0.01
    assert least <= called <= most


def test_independent_series_are_called_related_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(8)
    p = []
    for _ in range(100):
        walks = np.cumsum(rng.standard_normal((20, 40)), axis=1)
        p.append(correlated(list(walks[:10]), list(walks[10:]))[1])
    # One expected at p < .01; six or more have a chance of 0.1 %.
    assert sum(value < 0.01 for value in p) <= 5
    assert 0.3 < float(np.median(p)) < 0.7


def test_throttling_is_counted_in_intervals_of_measured_windows() -> None:
    run = _clocked(np.random.default_rng(9), lambda _: 1.0, lambda _: 1.0)
    assert run.telemetry is not None
    run.telemetry.conditions["gpu_throttled"] = [(10 * S, 12 * S), (105 * S, 106 * S), (60 * S, 61 * S)]
    (found,) = findings_of(run, "conditions")
    assert found.text == "the GPU throttled in 2 intervals (2 of 10 measured windows)"


def test_utilization_is_the_mean_over_the_windows() -> None:
    run = _clocked(np.random.default_rng(10), lambda _: 1.0, lambda _: 1.0)
    assert run.telemetry is not None
    times = run.telemetry.series["cpu_mhz"][0]
    # Two cores busy inside the launches' windows, none between.
    busy = np.where((times / S) % 100 < 41, 2.0, 0.0)
    run.telemetry.series["cpu_busy_cores"] = (times, busy)
    (found,) = findings_of(run, "utilization")
    assert found.value == pytest.approx(2.0, rel=0.02)
    assert found.text == "2.00 cores busy"


# --- drift ---------------------------------------------------------------------------------------------------------


def _slowing(per_minute: float, blocks: int = 6) -> Run:
    rng = np.random.default_rng(11)
    rows: list[Sample] = []
    for block in range(blocks):
        now, index = 100.0 * block, 0
        while (since := now - 100.0 * block) < 60:
            spent = 0.25 * math.exp(0.03 * rng.standard_normal()) / (1 + per_minute * since / 60)
            rows.append(sample(block, "engine", CELL, index, now, now + spent))
            now, index = now + spent, index + 1
    return run_of(rows)


def test_a_drift_over_the_window_is_given_a_minute() -> None:
    (found,) = findings_of(_slowing(-0.10), "drift")
    assert found.verdict == "drifts"
    # A tenth of the first rate is a little more of the median one.
    assert found.value == pytest.approx(-0.10 / 0.95, rel=0.1)
    assert found.text.startswith("throughput falls: -10.")


def test_steady_throughput_shows_no_trend() -> None:
    (found,) = findings_of(_slowing(0.0), "drift")
    assert found.verdict == "no trend shown"
    assert found.ci_low < 0 < found.ci_high


def test_short_windows_have_no_trend_at_all() -> None:
    assert findings_of(simulate_run(), "drift") == []
