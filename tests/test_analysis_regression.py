"""The regression gate: bands, what is confirmed, what is refused, and how often it errs."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.records import Cell
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.decisions.limits import Limits, parse_limit
from enginecmp_analysis.decisions.regression import (
    CompareReport,
    band,
    compare_runs,
    confirm,
    needed_to_confirm,
)
from enginecmp_analysis.judge.compare import welch
from enginecmp_analysis.render.export import to_json
from enginecmp_analysis.render.junit import to_junit
from enginecmp_analysis.render.regression_table import regression_markdown, render_regression, words

SECONDS = 0.1


def run_of(name: str, slowdown: float = 1.0, *, seed: int, engines: tuple[str, ...] = ("a",), **design: Any) -> Run:
    """Return a run whose engines take `slowdown` times 0.1 s a request."""
    return simulate_run(
        Design(seconds=SECONDS * slowdown, **design),
        seed=seed,
        engines=engines,
        run_id=name,
    )


def changed(run: Run, **changes: object) -> Run:
    raw = msgspec.to_builtins(run.manifest) | changes
    return dataclasses.replace(run, manifest=msgspec.convert(raw, type(run.manifest)))


def verdict(slowdown: float, metric: str = "e2e_seconds", **design: Any) -> tuple[str | None, str, bool]:
    base, new = run_of("old", seed=1, **design), run_of("new", slowdown, seed=2, **design)
    (line,) = compare_runs([base], [new], metrics=[metric]).lines
    return line.band, line.confirmed, line.failed


@pytest.mark.parametrize(
    ("ratio", "name"),
    [(0.5, "acceptable"), (1.0999, "acceptable"), (1.10001, "warning"), (1.1999, "warning"), (1.2001, "critical")],
)
def test_a_band_is_where_the_point_estimate_lies(ratio: float, name: str) -> None:
    assert band(ratio, Limits()) == name


@pytest.mark.parametrize(
    ("lower", "upper", "word"),
    [
        (0.90, 1.09, "PASS"),
        (1.05, 1.11, "INCONCLUSIVE"),
        (1.11, 1.19, "WARNING"),
        (1.15, 1.30, "WARNING"),
        (1.21, 1.40, "CRITICAL"),
        (1.05, 1.40, "INCONCLUSIVE"),
        (math.nan, math.nan, "INCONCLUSIVE"),
    ],
)
def test_only_one_sided_bounds_confirm(lower: float, upper: float, word: str) -> None:
    assert confirm(lower, upper, Limits()) == word


def test_limits_that_cross_are_refused() -> None:
    with pytest.raises(UsageError, match="0 < warning < critical"):
        Limits(warning=0.3, critical=0.2)


@pytest.mark.parametrize("metric", ["e2e_seconds", "decode_tokens_per_second", "throughput_tokens_per_second"])
@pytest.mark.parametrize(
    ("slowdown", "expected"),
    [
        (0.7, ("acceptable", "PASS", False)),
        (1.0, ("acceptable", "PASS", False)),
        (1.15, ("warning", "WARNING", False)),
        (1.3, ("critical", "CRITICAL", True)),
    ],
)
def test_a_slowdown_is_worse_in_times_and_in_rates(
    metric: str, slowdown: float, expected: tuple[str, str, bool]
) -> None:
    assert verdict(slowdown, metric, launch_spread=0.01) == expected


def test_bounds_are_those_of_welchs_t_on_logs() -> None:
    from scipy import stats

    base, new = run_of("old", seed=1), run_of("new", 1.3, seed=2)
    (line,) = compare_runs([base], [new], metrics=["e2e_seconds"]).lines
    # The launch means again, from the raw stamps.
    logs = []
    for run in (base, new):
        spent = (run.columns.end_ns - run.columns.intended_ns)[run.columns.phase == 2] * 1e-9
        launch = run.columns.launch[run.columns.phase == 2]
        logs.append(np.log([spent[launch == i].mean() for i in np.unique(launch)]))
    found = stats.ttest_ind(logs[1], logs[0], equal_var=False)
    two = found.confidence_interval(0.95)
    one = found.confidence_interval(0.90)
    assert [line.ci_low, line.ci_high] == pytest.approx(np.exp([two.low, two.high]), rel=1e-9)
    assert [line.lower, line.upper] == pytest.approx(np.exp([one.low, one.high]), rel=1e-9)


def test_a_warning_fails_the_gate_only_when_asked() -> None:
    sides = [run_of("old", seed=1, launch_spread=0.01)], [run_of("new", 1.15, seed=2, launch_spread=0.01)]
    assert not compare_runs(*sides).failed
    assert compare_runs(*sides, limits=Limits(fail_on="warning")).failed
    assert compare_runs(*sides, limits=Limits(warning=0.05, critical=0.1)).failed


@pytest.mark.parametrize(("design", "missing"), [({"blocks": 9}, 1), ({"requests": 9}, 10)])
def test_below_ten_by_ten_nothing_is_confirmed(design: dict[str, Any], missing: int) -> None:
    base, new = run_of("old", seed=1, **design), run_of("new", 2.0, seed=2, **design)
    report = compare_runs([base], [new])
    (line,) = report.lines
    assert (line.band, line.confirmed, line.withheld) == ("critical", "INCONCLUSIVE", True)
    assert line.launches_needed == missing
    assert line.reason is not None
    assert "it takes 10" in line.reason
    assert not report.failed


def test_noise_is_inconclusive_and_the_launches_asked_for_suffice() -> None:
    design: dict[str, Any] = {"launch_spread": 0.10}
    base, new = run_of("old", seed=3, **design), run_of("new", 1.04, seed=4, **design)
    (line,) = compare_runs([base], [new]).lines
    assert line.confirmed == "INCONCLUSIVE"
    assert line.launches_needed is not None
    # Power of the plan, checked by simulation: 10 % noise, a true 4 %, limit 10 %.
    rng = np.random.default_rng(5)
    pilot = welch(*np.exp(0.1 * _scores(10) + np.array([[0.0], [math.log(1.04)]])))
    n = 10 + (needed_to_confirm(pilot, Limits()) or 0)
    logs = 0.1 * rng.standard_normal((2000, 2, n)) + np.array([[0.0], [math.log(1.04)]])
    _, upper = welch(np.exp(logs[:, 0]), np.exp(logs[:, 1])).interval(0.90)
    assert 0.77 < float((upper < 1.10).mean()) < 0.83


def _scores(n: int) -> NDArray[np.float64]:
    """Return n values of mean 0 and standard deviation 1."""
    x = np.arange(n) - (n - 1) / 2
    return np.asarray(x / x.std(ddof=1))


# statistics of 4,000 gates each, from an independent simulation: true +8 %, s = 5 %, 10 launches: the point estimate
# calls about a fifth a warning, the confirmed rule below 1 %; true +25 %, s = 2 %: nearly all CRITICAL.
@pytest.mark.parametrize(
    ("truth", "spread", "word", "low", "high"),
    [
        (1.08, 0.05, "WARNING", 0.0, 0.02),
        (1.10, 0.05, "WARNING", 0.035, 0.065),
        (1.10, 0.05, "PASS", 0.035, 0.065),
        (1.20, 0.05, "CRITICAL", 0.035, 0.065),
        (1.25, 0.02, "CRITICAL", 0.98, 1.0),
        (1.00, 0.02, "PASS", 0.99, 1.0),
    ],
)
def test_error_rates_at_and_away_from_the_limits(
    truth: float, spread: float, word: str, low: float, high: float
) -> None:
    rng = np.random.default_rng(7)
    n = 4000
    base, new = (s * np.exp(spread * rng.standard_normal((n, 10))) for s in (1.0, truth))
    lower, upper = welch(base, new).interval(0.90)
    share = sum(confirm(a, b, Limits()) == word for a, b in zip(lower, upper, strict=True)) / n
    assert low <= share <= high


def test_reproducible_takes_the_upper_bound_of_the_spread() -> None:
    steady = run_of("old", seed=1, launch_spread=0.005, requests=100)
    # Ten launches that show 4 % do not prove less than 5 %: the factor is 1.65.
    loose = run_of("new", seed=2, launch_spread=0.04, requests=100)
    (line,) = compare_runs([steady], [loose]).lines
    assert line.base.reproducible
    assert line.new.cv < 0.05 < line.new.cv_upper
    assert line.new.cv_upper == pytest.approx(1.645 * line.new.cv, rel=1e-3)
    assert not line.new.reproducible


def test_where_both_sides_pool_runs_the_run_is_what_is_repeated() -> None:
    speeds = (1.0, 1.12, 1.27), (1.2, 1.36, 1.5)
    base, new = (
        [
            run_of(f"{side}{n}", speed, seed=10 * n + len(side), launch_spread=0.01)
            for n, speed in enumerate(side_speeds)
        ]
        for side, side_speeds in zip(("old", "recent"), speeds, strict=True)
    )
    (line,) = compare_runs(base, new).lines
    assert (line.base.n_launches, line.n_runs) == (30, 3)
    # Launches alone would call it critical: 30 on each side, and 1 % between those of one run.
    (alone,) = compare_runs(base[:1], new[:1]).lines
    assert (alone.confirmed, alone.n_runs) == ("WARNING", msgspec.UNSET)
    assert line.confirmed == "INCONCLUSIVE"
    assert line.ci_high / line.ci_low > 1.3
    assert line.launches_needed == 0
    assert isinstance(line.runs_needed, int)
    assert f"{line.runs_needed} more runs of each side needed" in words(line)
    # The numbers: Welch's t on the means of runs, of a rate here, so base over new.
    means = [
        np.array([compare_runs([run], [other]).lines[0].base.mean for run in runs])
        for runs, other in ((base, new[0]), (new, base[0]))
    ]
    expected = welch(*reversed(means)).interval()
    assert (line.ci_low, line.ci_high) == pytest.approx(tuple(map(float, expected)), rel=1e-3)


def test_swapping_the_sides_inverts_the_slowdown() -> None:
    base, new = run_of("old", seed=1), run_of("new", 1.15, seed=2)
    (there,), (back,) = compare_runs([base], [new]).lines, compare_runs([new], [base]).lines
    assert there.slowdown == pytest.approx(1 / back.slowdown)
    assert there.lower == pytest.approx(1 / back.upper)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": {"cpu": "another", "cores": 2}}, "environment.cpu"),
        ({"model": {"name": "simulated-model", "sha256": "1" * 64, "quantization": "Q8_0"}}, "model sha256"),
        ({"engines": [{"name": "a", "version": "1.0", "options": {"threads": 4}}]}, "a options.threads"),
    ],
)
def test_other_conditions_are_refused_with_the_difference(change: dict[str, object], said: str) -> None:
    base, new = run_of("old", seed=1), changed(run_of("new", seed=2), **change)
    with pytest.raises(ResultsError, match=f"{said} is .*--allow-different"):
        compare_runs([base], [new])
    report = compare_runs([base], [new], allow_different=True)
    assert any(said in warning for warning in report.warnings)


def test_another_build_is_what_is_compared_and_is_shown() -> None:
    new = changed(run_of("new", seed=2), engines=[{"name": "a", "version": "2.0", "options": {"extra": {"x": "1"}}}])
    report = compare_runs([run_of("old", seed=1)], [new])
    assert "a version is 2.0, was 1.0" in report.changed
    assert any("a options.extra.x" in text for text in report.changed)


def test_what_only_one_side_has_is_listed() -> None:
    cells = Cell(50, 16, 1), Cell(100, 16, 1)
    base = simulate_run(seed=1, engines=("a", "b"), cells=cells, run_id="old")
    new = simulate_run(seed=2, engines=("a", "c"), cells=cells[:1], run_id="new")
    report = compare_runs([base], [new], allow_different=True)
    assert [line.engine for line in report.lines] == ["a"]
    assert report.not_compared == [
        "engine b: only in base",
        "engine c: only in new",
        "engine a, prompt 100 → output 16 tokens, 1 user, throughput_tokens_per_second: only in base",
    ]
    assert all(text in to_junit(report) for text in ("engine b: only in base", "engine c: only in new"))


def test_runs_with_nothing_in_common_are_an_error() -> None:
    with pytest.raises(ResultsError, match="engine x: only in base"):
        compare_runs([run_of("old", seed=1, engines=("x",))], [run_of("new", seed=2)])


def test_a_run_on_both_sides_is_an_error() -> None:
    one, two = run_of("one", seed=1), run_of("two", seed=2)
    with pytest.raises(ResultsError, match="run two is on both sides"):
        compare_runs([one, two], [two])


def test_runs_that_cannot_be_pooled_on_one_side_are_an_error() -> None:
    other = changed(run_of("two", seed=2), engines=[{"name": "a", "version": "2.0"}])
    with pytest.raises(ResultsError, match=r"runs one and two cannot be pooled.*version"):
        compare_runs([run_of("one", seed=1), other], [run_of("new", seed=3)])


def test_an_engine_that_computes_something_else_is_not_compared() -> None:
    base = simulate_run(seed=1, engines=("a", "b"), run_id="old")
    new = simulate_run(seed=2, engines=("a", "b"), run_id="new", gate="not comparable")
    report = compare_runs([base], [new])
    assert [line.engine for line in report.lines] == ["a"]
    assert report.not_compared == ["engine b: does not compute what the reference computes"]


def test_both_sides_are_cut_alike() -> None:
    steady = run_of("old", seed=1, requests=40, launch_spread=0.005)
    warm = run_of("new", seed=2, requests=40, launch_spread=0.005)
    # The first six requests of every launch take three times as long.
    spent = warm.columns.end_ns - warm.columns.start_ns
    early = (warm.columns.phase == 2) & (warm.columns.index < 6)
    shifted = np.cumsum(np.where(early, 2 * spent, 0))
    warm.columns.end_ns[:] += shifted
    warm.columns.start_ns[:] += shifted - np.where(early, 2 * spent, 0)
    warm.columns.token_ns[:] += np.repeat(shifted, np.diff(warm.columns.offsets))
    report = compare_runs([steady], [warm], metrics=["e2e_seconds"])
    (line,) = report.lines
    assert line.confirmed == "PASS"
    assert line.slowdown == pytest.approx(1.0, abs=0.02)
    # The old run alone has nothing to cut; next to the new one it loses as many requests.
    cuts = [text.partition(" of every launch")[0] for text in report.warnings if "cut as warm-up" in text]
    assert len(cuts) == 2
    assert cuts[0].removeprefix("base") == cuts[1].removeprefix("new")
    alone = compare_runs([steady], [run_of("again", seed=3, requests=40, launch_spread=0.005)], metrics=["e2e_seconds"])
    assert not any("cut as warm-up" in text for text in alone.warnings)
    assert alone.lines[0].base.mean != line.base.mean


# --- what is written down ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> CompareReport:
    """One of each: passed, warned, critical, withheld."""
    found = []
    for name, slowdown, design in [
        ("same", 1.0, {}), ("slower", 1.15, {}), ("much_slower", 1.3, {}), ("short", 1.3, {"blocks": 5})
    ]:  # fmt: skip
        sides = [
            [run_of(side, factor, seed=seed, engines=(name,), launch_spread=0.01, **design)]
            for side, factor, seed in (("20261121-old", 1.0, 1), ("20261122-new", slowdown, 2))
        ]
        found.append(compare_runs(*sides))
    whole = found[0]
    whole.lines = [line for part in found for line in part.lines]
    whole.not_compared = ["engine lost: only in base"]
    whole.failed = True
    return whole


def test_the_table_fits_80_columns_and_ends_with_the_verdict(report: CompareReport) -> None:
    lines = [text for text, _ in render_regression(report)]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for word in ("PASS (acceptable", "WARNING (warning", "CRITICAL (critical", "WITHHELD (critical"):
        assert word in text
    assert "not compared: engine lost: only in base" in text
    assert "FAILED: a regression is confirmed at level critical or above" in text


def test_junit_has_one_case_a_comparison_and_fails_what_the_gate_fails(report: CompareReport) -> None:
    root = ElementTree.fromstring(to_junit(report))
    (suite,) = root.findall("testsuite")
    cases = suite.findall("testcase")
    assert [(case.find("failure") is not None, case.find("skipped") is not None) for case in cases] == [
        (False, False),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    assert len({(case.get("classname"), case.get("name")) for case in cases}) == 4


def test_junit_stays_xml_whatever_a_label_is(report: CompareReport) -> None:
    line = msgspec.structs.replace(report.lines[0], engine='<a&"\x00\x1b')
    odd = msgspec.structs.replace(report, lines=[line])
    (case,) = ElementTree.fromstring(to_junit(odd)).iter("testcase")
    assert '<a&"' in str(case.get("name"))


def test_json_names_its_schema_and_writes_null_for_what_is_not_a_number() -> None:
    base, new = run_of("old", seed=1, blocks=1), run_of("new", seed=2, blocks=1)
    content = json.loads(to_json(compare_runs([base], [new])))
    assert content["schema"] == "enginecmp-compare/1"
    assert content["lines"][0]["lower"] is None
    assert content["lines"][0]["base"]["cv"] is None


def test_markdown_puts_the_verdict_first(report: CompareReport) -> None:
    text = regression_markdown(report)
    assert text.startswith("### ❌ FAILED")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == 2 + 4


# --- limits of single metrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "metric", "warning", "critical"),
    [
        ("ttft_seconds_p50=5%,10%", "ttft_seconds_p50", 0.05, 0.1),
        ("throughput_tokens_per_second=2.5%", "throughput_tokens_per_second", 0.025, 0.05),
        ("peak_rss_above_empty_bytes=1%,30%", "peak_rss_above_empty_bytes", 0.01, 0.3),
    ],
)
def test_a_limit_is_a_metric_and_two_shares(text: str, metric: str, warning: float, critical: float) -> None:
    name, limits = parse_limit(text, "critical")
    assert (name, limits.warning, limits.critical) == (metric, pytest.approx(warning), pytest.approx(critical))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ttft_seconds", "expected METRIC=WARNING%"),
        ("ttft_second=5%", "did you mean 'ttft_seconds'"),
        ("ttft_seconds_p42=5%", "p50, p90, p95, p99"),
        ("load_seconds_p50=5%", "one value a launch"),
        ("ttft_seconds=10%,5%", "0 < warning < critical"),
    ],
)
def test_a_wrong_limit_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse_limit(text, "critical")


PRIMARY = "throughput_tokens_per_second"


def test_a_metric_of_its_own_limit_is_compared_beside_the_primary_one_and_fails_by_it() -> None:
    base, new = run_of("base", seed=1), run_of("new", 1.15, seed=2)
    plain = compare_runs([base], [new])
    assert [(line.metric, line.confirmed) for line in plain.lines] == [(PRIMARY, "WARNING")]
    assert not plain.failed
    own = dict([parse_limit("ttft_seconds_p50=2%,5%", "critical")])
    report = compare_runs([base], [new], limits_of=own)
    found = {line.metric: line for line in report.lines}
    assert (found[PRIMARY].confirmed, found[PRIMARY].critical_limit) == ("WARNING", 0.2)
    assert (found["ttft_seconds_p50"].confirmed, found["ttft_seconds_p50"].critical_limit) == ("CRITICAL", 0.05)
    assert report.failed
    assert "ttft_seconds_p50  (lower is better; warning 2.0 %, critical 5.0 %)" in [
        text for text, _ in render_regression(report)
    ]
    only = compare_runs([base], [new], metrics=["e2e_seconds"], limits_of=own)
    assert [line.metric for line in only.lines] == ["ttft_seconds_p50", "e2e_seconds"]
