"""Stopping on precision: when, and that it leaves the error rates alone."""

from __future__ import annotations

import math

import numpy as np

from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.simulate import Design, draw, simulate_run
from enginecmp_analysis.judge.compare import paired
from enginecmp_analysis.judge.stopping import progress


def _progress(
    design: Design, wanted: float, engines: tuple[str, ...] = ("baseline", "engine")
) -> tuple[bool, float, int]:
    found = progress(analyse([simulate_run(design, engines=engines)]).report.comparisons, wanted)
    return found.reached, found.precision, found.launches


def test_ten_blocks_are_the_least_however_precise() -> None:
    reached, precision, launches = _progress(Design(blocks=9, requests=50, launch_spread=0.001), 0.5)
    assert not reached
    assert precision < 0.05
    assert launches == 9
    assert _progress(Design(blocks=10, requests=50, launch_spread=0.001), 0.5)[0]


def test_a_wide_interval_goes_on() -> None:
    assert not _progress(Design(blocks=10, launch_spread=0.1), 0.02)[0]


def test_no_interval_and_no_comparison_go_on() -> None:
    reached, precision, _ = _progress(Design(blocks=1), 0.5)
    assert not reached
    assert math.isnan(precision)
    assert _progress(Design(), 0.5, engines=("baseline",))[0] is False


def test_stopping_on_precision_keeps_the_coverage_that_stopping_on_significance_loses() -> None:
    rng = np.random.default_rng(5)
    means = draw(Design(blocks=60, requests=10, launch_spread=0.04), rng, 400).mean(axis=-1)
    covered, alarms = 0, 0
    for baseline, engine in means:
        results = [paired(baseline[:b], engine[:b]) for b in range(10, 61, 2)]
        intervals = [(float(low), float(high)) for low, high in (found.interval() for found in results)]
        narrow = [(low, high) for low, high in intervals if math.sqrt(high / low) - 1 <= 0.025]
        low, high = (narrow or intervals[-1:])[0]
        covered += low <= 1.0 <= high
        alarms += any(low > 1.0 or high < 1.0 for low, high in intervals)
    assert covered / 400 >= 0.91
    # The control: the first interval clear of 1 would be wrong three times as often as promised.
    assert alarms / 400 > 0.15
