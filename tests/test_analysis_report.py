"""The whole way from samples to verdicts, on simulated runs whose truth is known."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from enginecmp.errors import ResultsError, UsageError
from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import MEASURE, ColumnBuilder
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.data.simulate import Design, samples, simulate_run
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.render.export import to_csv, to_json, to_markdown
from enginecmp_analysis.render.table import short_words
from enginecmp_analysis.schema.stats import Comparison, StatsReport

PRIMARY = "throughput_tokens_per_second"

# The pinned schema, key by key.
COMPARISON_KEYS = [
    "scenario",
    "cell",
    "metric",
    "primary",
    "baseline",
    "engine",
    "n_launches",
    "n_samples",
    "ratio",
    "ci_low",
    "ci_high",
    "sci_low",
    "sci_high",
    "p_value",
    "p_adjusted",
    "verdict",
    "mde",
    "launches_needed",
    "requests_needed",
    "warnings",
]
SUMMARY_KEYS = [
    "scenario",
    "engine",
    "cell",
    "metric",
    "n_launches",
    "n_samples",
    "mean",
    "ci_low",
    "ci_high",
    "p50",
    "p90",
    "p95",
    "p99",
    "cv_launches",
]


def _edited(run: Run, change: Callable[[list[Sample]], list[Sample]]) -> Run:
    builder = ColumnBuilder()
    for sample in change(samples(run.columns)):
        builder.add(sample)
    return dataclasses.replace(run, columns=builder.build())


def _find(report: StatsReport, metric: str, engine: str = "engine") -> Comparison:
    (found,) = [c for c in report.comparisons if (c.metric, c.engine) == (metric, engine)]
    return found


def _manifest(run: Run, **changes: object) -> Run:
    raw = msgspec.to_builtins(run.manifest) | changes
    return dataclasses.replace(run, manifest=msgspec.convert(raw, type(run.manifest)))


def test_a_planted_slowdown_is_found_on_every_metric_in_its_own_direction() -> None:
    report = analyse([simulate_run(Design(ratio=1.10))]).report
    # What stamps alone give a closed loop of one user; loading is not slowed.
    present = {c.metric for c in report.comparisons} - {"load_seconds"}
    assert len(present) == 8
    for name in present:
        metric = METRICS[name]
        found = _find(report, name)
        assert found.verdict == "slower", name
        truth = 1 / 1.10 if metric.higher_is_better else 1.10
        assert found.ci_low < truth < found.ci_high, name


def test_a_planted_speedup_is_faster_both_ways_round() -> None:
    run = simulate_run(Design(ratio=0.9))
    assert _find(analyse([run]).report, PRIMARY).verdict == "faster"
    assert _find(analyse([run], Options(baseline="engine")).report, PRIMARY, "baseline").verdict == "slower"


def test_equal_engines_are_equivalent_when_the_launches_agree() -> None:
    found = _find(analyse([simulate_run(Design(blocks=20, requests=30, launch_spread=0.005))]).report, PRIMARY)
    assert found.verdict == "equivalent"
    assert found.launches_needed == 0


def test_noise_without_a_difference_is_inconclusive_and_says_what_is_missing() -> None:
    found = _find(analyse([simulate_run(Design(launch_spread=0.08, ratio=1.02))]).report, PRIMARY)
    assert found.verdict == "inconclusive"
    assert found.launches_needed is not None
    assert found.launches_needed > 10
    assert found.mde > 0.05


@pytest.mark.parametrize(
    ("design", "needed", "requests", "words"),
    [
        (Design(blocks=9, ratio=2.0), 1, 0, "withheld: 1 more launch needed"),
        (
            Design(blocks=5, requests=5, ratio=2.0),
            *(5, 10, "withheld: 10 requests a launch needed, about 5 were valid, and 5 more launches needed"),
        ),
        *(
            (
                Design(blocks=blocks, requests=5, ratio=2.0),
                *(0, 10, "withheld: 10 requests a launch needed, about 5 were valid"),
            )
            for blocks in (10, 20, 30)
        ),
    ],
    ids=["launches", "both", "requests", "requests, 20 launches", "requests, 30 launches"],
)
def test_below_ten_by_ten_numbers_are_shown_and_what_is_missing_is_said(
    design: Design, needed: int, requests: int, words: str
) -> None:
    found = _find(analyse([simulate_run(design)]).report, PRIMARY)
    assert found.verdict == "withheld"
    assert (found.launches_needed, found.requests_needed) == (needed, requests)
    assert short_words(found) == words
    assert found.ratio == pytest.approx(0.5, rel=0.1)
    assert found.p_value < 0.001


def test_one_load_a_launch_is_enough_for_load_seconds() -> None:
    assert _find(analyse([simulate_run(Design(requests=2))]).report, "load_seconds").verdict != "withheld"


def test_one_flagged_request_is_left_out_counted_and_costs_the_tenth_request() -> None:
    def flag(rows: list[Sample]) -> list[Sample]:
        target = next(s for s in rows if s.engine == "engine" and s.phase == "measure")
        target.flags = ["foreign_cpu"]
        return rows

    run = _edited(simulate_run(), flag)
    report = analyse([run]).report
    assert "engine: 1 of 100 measured requests left out: foreign_cpu 1" in report.warnings
    assert _find(report, "e2e_seconds").n_samples == 99
    assert _find(report, "e2e_seconds").verdict == "withheld"
    included = analyse([run], Options(include_flagged=True)).report
    assert _find(included, "e2e_seconds").n_samples == 100
    assert _find(included, "e2e_seconds").verdict == "withheld"


def test_launches_that_failed_before_measuring_are_counted() -> None:
    def crash(rows: list[Sample]) -> list[Sample]:
        lost = [s for s in rows if s.engine == "engine" and s.phase == "load" and s.block < 2]
        for s in lost:
            s.status = "crash"
        return [s for s in rows if s.launch not in {s.launch for s in lost} or s.phase == "load"]

    report = analyse([_edited(simulate_run(), crash)]).report
    assert "engine: 2 launches failed: crash in load 2" in report.warnings
    assert _find(report, PRIMARY).n_launches == 8


def test_a_run_with_nothing_valid_has_no_numbers_and_says_why() -> None:
    def break_all(rows: list[Sample]) -> list[Sample]:
        for sample in rows:
            sample.status = "timeout"
        return rows

    report = analyse([_edited(simulate_run(), break_all)]).report
    assert report.comparisons == []
    assert report.summaries == []
    told = "engine: 100 of 100 measured requests left out: timeout 100; --include-flagged shows the flagged ones"
    assert told in report.warnings


def test_an_engine_that_computes_something_else_is_listed_but_not_compared() -> None:
    report = analyse([simulate_run(gate="not comparable")]).report
    assert report.comparisons == []
    assert {s.engine for s in report.summaries} == {"baseline", "engine"}
    assert any(w.startswith("engine does not compute what the reference computes") for w in report.warnings)


def test_an_unchecked_engine_is_compared_and_marked() -> None:
    analysis = analyse([simulate_run(gate="not checked")])
    assert analysis.report.comparisons
    assert analysis.contexts[0].engines["engine"].endswith("equivalence not checked")
    assert any(w.startswith("not checked for equivalence: engine;") for w in analysis.report.warnings)


def test_an_incomparable_baseline_compares_nothing_and_names_the_way_out() -> None:
    report = analyse([simulate_run(gate="not comparable")], Options(baseline="engine")).report
    assert report.comparisons == []
    assert any("choose another with --baseline" in w for w in report.warnings)


def test_primary_family_is_corrected_by_holm_and_has_wider_simultaneous_intervals() -> None:
    report = analyse([simulate_run(Design(ratio=1.03), engines=("baseline", "a", "b", "c"))]).report
    primary = [c for c in report.comparisons if c.primary]
    assert [c.metric for c in report.comparisons][:3] == [PRIMARY] * 3
    assert len(primary) == 3
    first, second, third = sorted(primary, key=lambda c: c.p_value)
    # Holm by hand: three, two and one times p, never falling.
    lifted = [3 * first.p_value, 2 * second.p_value, third.p_value]
    expected = [min(1, max(lifted[: i + 1])) for i in range(3)]
    assert [c.p_adjusted for c in (first, second, third)] == pytest.approx(expected)
    for c in report.comparisons:
        if c.primary:
            assert c.sci_low < c.ci_low < c.ratio < c.ci_high < c.sci_high
        else:
            assert math.isnan(c.sci_low)


def test_pairs_compares_every_engine_with_every_other_once() -> None:
    report = analyse([simulate_run(engines=("baseline", "a", "b"))], Options(pairs=True, metrics=(PRIMARY,))).report
    assert {(c.baseline, c.engine) for c in report.comparisons} == {("baseline", "a"), ("baseline", "b"), ("a", "b")}


def test_looking_at_one_metric_does_not_loosen_the_correction() -> None:
    run = simulate_run(Design(ratio=1.02))
    everything = _find(analyse([run]).report, "ttft_seconds")
    alone = _find(analyse([run], Options(metrics=("ttft_seconds",))).report, "ttft_seconds")
    assert alone.p_adjusted == everything.p_adjusted


def test_doubling_every_request_does_not_shrink_an_interval() -> None:
    run = simulate_run(Design(launch_spread=0.03))

    def double(rows: list[Sample]) -> list[Sample]:
        last = max(s.end_ns for s in rows)
        again = [msgspec.structs.replace(s, index=s.index + 10) for s in rows if s.phase == "measure"]
        for s in again:
            s.start_ns, s.intended_ns, s.end_ns = (ns + last for ns in (s.start_ns, s.intended_ns, s.end_ns))
            s.token_ns = [ns + last for ns in s.token_ns]
        return rows + again

    once, twice = (analyse([r]).report for r in (run, _edited(run, double)))
    for name in ("e2e_seconds", "ttft_seconds", "itl_seconds", "decode_tokens_per_second"):
        a, b = _find(once, name), _find(twice, name)
        assert b.n_samples == 2 * a.n_samples
        assert b.ci_high - b.ci_low >= (a.ci_high - a.ci_low) * (1 - 1e-9)
        assert b.p_value == pytest.approx(a.p_value)


def test_renaming_blocks_changes_nothing() -> None:
    run = simulate_run(Design(ratio=1.05))
    relabelled = dataclasses.replace(run.columns, block=(run.columns.block * 7 + 3) % 10)
    before, after = (
        _find(analyse([r]).report, "e2e_seconds") for r in (run, dataclasses.replace(run, columns=relabelled))
    )
    assert after.p_value == pytest.approx(before.p_value)
    assert (after.ci_low, after.ci_high) == pytest.approx((before.ci_low, before.ci_high))


def test_two_runs_of_one_machine_are_pooled_as_more_blocks() -> None:
    runs = [simulate_run(Design(blocks=5), seed=seed) for seed in (1, 2)]
    found = _find(analyse(runs).report, PRIMARY)
    assert found.n_launches == 10
    assert found.verdict != "withheld"


def test_runs_of_two_machines_stand_apart_under_two_names() -> None:
    a, b = simulate_run(seed=1), _manifest(simulate_run(seed=2), environment={"cpu": "other", "cores": 2})
    report = analyse([a, b]).report
    assert {c.scenario for c in report.comparisons} == {"simulated @ sim-1", "simulated @ sim-2"}
    assert {c.n_launches for c in report.comparisons} == {10}
    assert 'run sim-2 is not pooled with sim-1: environment.cpu is "other", was "simulated"' in report.warnings


def test_one_run_an_engine_is_compared_unpaired_and_says_so() -> None:
    first = simulate_run(seed=1, engines=("baseline",))
    second = _manifest(simulate_run(Design(ratio=1.2), seed=2, engines=("x", "engine")), baseline="baseline")
    report = analyse([first, second]).report
    found = _find(report, PRIMARY)
    assert found.verdict == "slower"
    assert any("compared unpaired" in w for w in found.warnings)


def test_a_missing_launch_costs_its_block() -> None:
    found = _find(analyse([simulate_run(Design(blocks=12, missing_launch=True))]).report, PRIMARY)
    assert found.n_launches == 11
    assert "1 launch without a partner in the block left out" in found.warnings


def test_zero_variance_warns_instead_of_lying() -> None:
    def flatten(rows: list[Sample]) -> list[Sample]:
        for s in rows:
            s.end_ns = s.start_ns + 10**8
            s.token_ns = [s.start_ns + 10**6 * (i + 1) for i in range(len(s.token_ns))]
        return rows

    found = _find(analyse([_edited(simulate_run(), flatten)]).report, "ttft_seconds")
    assert found.ratio == 1.0
    assert found.verdict == "inconclusive"
    assert math.isnan(found.p_value)
    assert any("no spread at all" in w for w in found.warnings)


def test_infinite_variance_warns() -> None:
    report = analyse([simulate_run(Design(requests=100, noise="pareto", tail=1.3))]).report
    assert any("no finite variance" in w for w in report.warnings)


def test_warm_up_of_one_engine_is_cut_from_all() -> None:
    def warm(rows: list[Sample]) -> list[Sample]:
        for s in rows:
            if s.engine == "engine" and s.phase == "measure":
                extra = round((s.end_ns - s.start_ns) * math.exp(-s.index / 5))
                s.start_ns, s.intended_ns = s.start_ns - extra, s.intended_ns - extra
        return rows

    report = analyse([_edited(simulate_run(Design(requests=60)), warm)]).report
    assert any("requests of every launch of every engine are cut as warm-up" in w for w in report.warnings)
    found = _find(report, "e2e_seconds")
    assert found.ci_low < 1.0 < found.ci_high
    kept = {s.n_samples for s in report.summaries if s.metric == "e2e_seconds"}
    assert len(kept) == 1
    assert kept.pop() <= 10 * 50


def test_a_floor_is_cut_in_any_case() -> None:
    report = analyse([simulate_run(Design(requests=12))], Options(warmup_floor=2)).report
    assert _find(report, "e2e_seconds").n_samples == 100


def test_quantiles_are_compared_where_launches_are_long_enough() -> None:
    report = analyse([simulate_run(Design(requests=40, ratio=1.2))], Options(quantiles=True)).report
    for name in ("ttft_seconds_p50", "ttft_seconds_p90"):
        found = _find(report, name)
        assert found.verdict == "slower"
        assert found.ratio == pytest.approx(1.2, rel=0.03)
    assert not [c for c in report.comparisons if c.metric == "ttft_seconds_p99"]
    assert any(w.startswith("p99: n/a (need 300 values a launch)") for w in report.warnings)


def test_a_quantile_that_its_n_cannot_bound_is_null() -> None:
    (found,) = [
        s for s in analyse([simulate_run()]).report.summaries if (s.metric, s.engine) == ("ttft_seconds", "engine")
    ]
    assert found.p95 > found.p90 > found.p50 > 0
    assert math.isnan(found.p99)


def test_drift_over_the_run_is_told_and_cancelled_by_pairing() -> None:
    report = analyse([simulate_run(Design(blocks=20, requests=20, drift=0.3))]).report
    assert any("slower from first block to last" in w for w in report.warnings)
    assert _find(report, "e2e_seconds").ci_high - _find(report, "e2e_seconds").ci_low < 0.06


def test_details_come_only_where_asked_for() -> None:
    run = simulate_run(Design(ratio=1.3))
    assert _find(analyse([run]).report, PRIMARY).details is msgspec.UNSET
    details = _find(analyse([run], Options(details=True)).report, "e2e_seconds").details
    assert isinstance(details, msgspec.Struct)
    assert details.sign_flip_p == 2 / 2**10
    assert details.fieller_low < 1.3 < details.fieller_high
    assert details.request_below_baseline < 0.1
    assert details.cliffs_delta == pytest.approx(2 * details.request_below_baseline - 1)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'engine'"):
        analyse([simulate_run()], Options(baseline="engin"))
    with pytest.raises(UsageError, match="did you mean 'itl_seconds'"):
        analyse([simulate_run()], Options(metrics=("itl_second",)))
    with pytest.raises(ResultsError, match="at least one run"):
        analyse([])


def test_json_has_every_key_of_the_schema_and_no_nan() -> None:
    text = to_json(analyse([simulate_run(Design(blocks=1))]).report)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert list(found) == ["schema", "rankings", "comparisons", "summaries", "warnings"]
    assert found["schema"] == "enginecmp-stats/1"
    assert list(found["comparisons"][0]) == COMPARISON_KEYS
    assert list(found["summaries"][0]) == SUMMARY_KEYS
    assert found["comparisons"][0]["p_value"] is None
    assert found["comparisons"][0]["cell"] == {"prompt_tokens": 50, "output_tokens": 16, "concurrency": 1}


def test_csv_and_markdown_hold_every_comparison() -> None:
    analysis = analyse([simulate_run(cells=(Cell(10, 4, 1), Cell(50, 4, 1)))])
    n = len(analysis.report.comparisons)
    assert n == 2 * 8 + 1
    assert len(to_csv(analysis.report).splitlines()) == n + 1
    assert "nan" not in to_csv(analysis.report)
    assert to_markdown(analysis).count(" engine / baseline |") == n + 1


def test_simulated_truth_arrives_in_the_columns() -> None:
    columns = simulate_run(Design(blocks=40, requests=40, ratio=1.5, launch_spread=0.0)).columns
    seconds = (columns.end_ns - columns.start_ns) * 1e-9
    measured = columns.phase == MEASURE
    means = [seconds[measured & (columns.engine == code)].mean() for code in (0, 1)]
    assert means == pytest.approx([0.1, 0.15], rel=0.02)
    assert np.array_equal(np.unique(columns.order), [0, 1])
