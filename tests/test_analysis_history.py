"""History: planted steps are found, quiet series stay quiet, new conditions begin anew."""

from __future__ import annotations

import dataclasses
import json
import math

import msgspec
import numpy as np
import pytest

from enginecmp.errors import UsageError
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.judge.history import changes, history
from enginecmp_analysis.render.export import to_json
from enginecmp_analysis.render.history_table import render_history
from enginecmp_analysis.schema.history import HistoryReport, Point


def series(factors: list[float], *, seed: int = 0, **manifest: object) -> list[Run]:
    """Return one run a factor, a day apart, each 1 % off by itself."""
    rng = np.random.default_rng(seed)
    runs = []
    for day, factor in enumerate(factors):
        seconds = 0.1 * factor * math.exp(0.01 * rng.standard_normal())
        run = simulate_run(Design(seconds=seconds), seed=100 * seed + day, engines=("a",), run_id=f"run-{day:02d}")
        raw = msgspec.to_builtins(run.manifest) | {"created_utc": f"2026-03-{day + 1:02d}T08:00:00Z"}
        runs.append(dataclasses.replace(run, manifest=msgspec.convert(raw | manifest, type(run.manifest))))
    return runs


def follow(runs: list[Run], metrics: tuple[str, ...] = ()) -> HistoryReport:
    return history([analyse([run]).groups[0] for run in runs], metrics)


def points(runs: list[Run], metric: str = "e2e_seconds") -> list[Point]:
    (found,) = follow(runs, (metric,)).series
    return found.points


def changed(found: list[Point]) -> list[str]:
    return [point.run_id for point in found if point.changed]


def test_a_planted_step_is_found_at_its_run() -> None:
    runs = series([1.0] * 9 + [1.12] * 7)
    found = points(runs)
    assert changed(found) == ["run-09"]
    assert all(math.isnan(point.ratio) for point in found[:9])
    assert all(1.08 < point.ratio < 1.16 for point in found[9:])
    assert all(point.ci_low < point.value < point.ci_high for point in found)
    # The order in which runs are given does not matter.
    assert points(runs[::-1]) == found


def test_a_step_there_and_back_is_two_changes() -> None:
    assert changed(points(series([1.0] * 6 + [0.85] * 6 + [1.0] * 6))) == ["run-06", "run-12"]


def test_a_step_below_five_percent_is_no_change() -> None:
    rng = np.random.default_rng(3)
    logs = 0.003 * rng.standard_normal(30) + np.where(np.arange(30) < 15, 0.0, math.log(1.04))
    assert changes(logs, np.full(30, 0.003)) == []
    assert changes(logs * math.log(1.08) / math.log(1.04), np.full(30, 0.003)) == [15]


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.15])
def test_quiet_series_show_no_change(noise: float) -> None:
    rng = np.random.default_rng(11)
    alarms = sum(
        bool(changes(noise * rng.standard_normal(n), np.full(n, noise / 3)))
        for n in (5, 10, 20, 40)
        for _ in range(100)
    )
    # p < .001 a series: of 400, more than 3 would have a probability of 0.1 %.
    assert alarms <= 3


def test_forty_quiet_histories_raise_no_alarm() -> None:
    rng = np.random.default_rng(12)
    assert [i for i in range(40) if changes(0.02 * rng.standard_normal(25), np.full(25, 0.006))] == []


def test_a_few_runs_that_agree_by_luck_prove_nothing() -> None:
    # Two pairs that agree to the last digit, 6 % apart: launches that spread by 5 % do not support it.
    logs = [0.0, 0.0, math.log(1.06), math.log(1.06)]
    assert changes(logs, [0.05] * 4) == []


def test_another_machine_begins_a_new_base_line() -> None:
    old = series([1.0] * 6)
    new = series([1.0] * 6 + [1.5] * 6, environment={"cpu": "another", "cores": 2})[6:]
    found = points(old + new)
    assert changed(found) == []
    marks = [point.run_id for point in found if point.new_fingerprint]
    assert marks == ["run-06"]
    assert "environment.cpu" in str(found[6].new_fingerprint)
    assert all(math.isnan(point.ratio) for point in found)
    # Were it the same machine, it would be a change.
    assert changed(points(series([1.0] * 6 + [1.5] * 6))) == ["run-06"]


def test_a_new_build_stays_in_the_series_and_is_noted() -> None:
    new = series([1.0] * 6 + [1.3] * 6, engines=[{"name": "a", "version": "2.0"}])[6:]
    found = points(series([1.0] * 6) + new)
    assert changed(found) == ["run-06"]
    assert found[6].note == "a version is 2.0, was 1.0"
    assert [point.note for point in found[7:]] == [None] * 5


def test_the_table_fits_80_columns_and_says_which_way() -> None:
    runs = series([1.0] * 6 + [1.2] * 6)
    for metric in ("e2e_seconds", "decode_tokens_per_second"):
        lines = [text for text, _ in render_history(follow(runs, (metric,)))]
        assert max(map(len, lines)) <= 80
        assert sum("changed, worse" in line for line in lines) == 1, metric


def test_the_primary_metric_is_followed_by_itself_and_json_names_its_schema() -> None:
    content = json.loads(to_json(follow(series([1.0] * 3))))
    assert content["schema"] == "enginecmp-history/1"
    assert [s["metric"] for s in content["series"]] == ["throughput_tokens_per_second"]
    assert content["series"][0]["points"][0]["ratio"] is None


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'e2e_seconds'"):
        follow(series([1.0]), ("e2e_second",))
