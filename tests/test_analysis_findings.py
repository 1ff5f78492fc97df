"""Findings against planted truths: what is there is named, what is not there is not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from simulated_load import S, batching_server, findings_of, queueing_server, run_of, sample, shown

from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.render.export import to_markdown
from enginecmp_analysis.render.first_screen import nothing

CELL = Cell(50, 16, 1)


# --- the KV cache --------------------------------------------------------------------------------------------------


def _caching(bytes_a_token: float, fixed: float = 0.0) -> Run:
    rows = []
    for block in range(4):
        for number, prompt in enumerate((50, 200, 800)):
            cell = Cell(prompt, 16, 1)
            held = fixed + bytes_a_token * (prompt + 16)
            start = 10.0 * number
            rows.append(sample(block, "engine", cell, 0, start, start + 1, metrics={"kv_cache_bytes": held}))
    return run_of(rows)


@pytest.mark.parametrize(
    ("bytes_a_token", "verdict"),
    [
        # 30 layers x 3 heads x (64 + 64) values.
        (11_520 * 2, "matches float16"),
        (11_520 * 4, "matches float32"),
        (11_520 * 34 / 32, "matches Q8_0"),
        (11_520 * 3, "off"),
        (0.0, "reserved"),
    ],
)
def test_the_kv_cache_is_held_against_the_formula(bytes_a_token: float, verdict: str) -> None:
    (found,) = findings_of(_caching(bytes_a_token, fixed=1e6), "kv cache")
    assert found.verdict == verdict
    assert found.value == pytest.approx(bytes_a_token, abs=1e-3)
    assert found.details == {"formula_float16_bytes": 23_040.0, "formula_float32_bytes": 46_080.0}


def test_the_kv_cache_is_told_at_lengths_beside_the_formula() -> None:
    # 30 layers x 3 heads x 128 values: 23,040 bytes a token in float16.
    told = shown(_caching(23_040.0, fixed=1e6))
    assert "float16 / float32 baseline" in told or "float16 / float32 engine" in told
    for row in ("1,024 tokens 23.6 MB / 47.2 MB 23.6 MB", "32,768 tokens 755 MB / 1.51 GB 755 MB"):
        assert row in told, told
    assert "4,096 tokens 94.4 MB / 189 MB reserved" in shown(_caching(1.0, fixed=1e9))


def test_components_stand_in_a_table_with_calls_and_the_bottleneck() -> None:
    cell = Cell(32, 4, variant="decode")
    parts = {"baseline": {"ffn": 0.6, "attention": 0.3, "other": 0.1}, "engine": {"ffn": 0.1, "attention": 0.2}}
    rows = [
        sample(block, engine, cell, i, i, i + 1, metrics={f"{name}_seconds": v for name, v in seconds.items()})
        for block in range(3)
        for engine, seconds in parts.items()
        for i in range(4)
    ]
    run = run_of(rows, scenario={"kind": "profile"})
    first, second = findings_of(run, "bottleneck")
    assert (first.verdict, second.verdict) == ("ffn", "attention")
    # 30 layers, four passes.
    assert first.details["ffn_calls"] == 120
    assert first.details["ffn_share"] == pytest.approx(0.6)
    assert first.text == "ffn takes 60.0 % of a pass: 120 calls of 5 ms"
    told = shown(run)
    assert "bottleneck: baseline ffn, engine attention" in told
    assert "ffn 120 600 60.0 % 100 33.3 %" in told
    assert "attention 120 300 30.0 % 200 66.7 %" in told
    assert "other – 100 10.0 % –" in told


def test_one_length_of_request_gives_no_slope() -> None:
    rows = [sample(0, "engine", CELL, i, i, i + 1, metrics={"kv_cache_bytes": 1e6}) for i in range(3)]
    assert findings_of(run_of(rows), "kv cache") == []


# --- growth with the prompt ----------------------------------------------------------------------------------------


def _long_prompts(exponent: float, *, requests: int = 5, seed: int = 5) -> Run:
    rng = np.random.default_rng(seed)
    rows = []
    for block in range(10):
        pace = math.exp(0.03 * rng.standard_normal())
        for number, prompt in enumerate((1024, 4096, 8128)):
            cell = Cell(prompt, 5, 1)
            for i in range(requests):
                start = 1000.0 * number + 100.0 * i
                first = start + pace * 2.0 * (prompt / 1024) ** exponent * math.exp(0.05 * rng.standard_normal())
                tokens = [round((first + 0.1 * t) * S) for t in range(5)]
                rows.append(sample(block, "engine", cell, i, start, first + 0.4, token_ns=tokens))
    return run_of(rows)


def test_the_exponent_of_prefill_is_covered_and_that_of_flat_decoding_is_zero() -> None:
    held = 0
    for seed in range(20):
        prefill, decode = findings_of(_long_prompts(1.12, seed=seed), "growth")
        held += prefill.ci_low <= 1.12 <= prefill.ci_high
        assert prefill.ci_high - prefill.ci_low < 0.05
        assert decode.value == pytest.approx(0.0, abs=1e-6)
    # 19 expected of a 95 % interval; 15 or fewer have a chance of 0.3 %.
    assert held >= 16


def test_the_exponent_is_told_in_words() -> None:
    assert "prefill time grows as T^1.5" in shown(_long_prompts(1.5))


def test_two_lengths_or_a_short_range_have_no_exponent() -> None:
    assert findings_of(simulate_run(cells=(Cell(10, 8, 1), Cell(100, 8, 1))), "growth") == []
    assert findings_of(simulate_run(cells=(Cell(100, 8, 1), Cell(150, 8, 1), Cell(200, 8, 1))), "growth") == []


def test_peak_memory_grows_by_the_token_only_where_cells_have_launches_of_their_own() -> None:
    rows = []
    for block in range(4):
        for prompt in (1024, 4096, 8128):
            cell = Cell(prompt, 16, 1)
            load = sample(block, "engine", cell, 0, 0, 1, phase="load", token_ns=[], metrics={"empty_rss_bytes": 1e8})
            held = 5e8 + 50_000.0 * (prompt + 16) + 1e5 * block
            first = sample(block, "engine", cell, 0, 2, 3, metrics={"peak_rss_bytes": held})
            for row in (load, first):
                row.launch = f"b{block}-engine-{prompt}"
            rows += [load, first]
    texts = [f.text for f in findings_of(run_of(rows, scenario={"launch_per_cell": True}), "growth")]
    assert any(text.startswith("peak memory grows by 50,000 bytes a token") for text in texts)
    assert not any("peak memory" in f.text for f in findings_of(run_of(rows), "growth"))


# --- prefix cache --------------------------------------------------------------------------------------------------


def _repeating(share: float, disturbed: bool = False) -> Run:
    rng = np.random.default_rng(12)
    rows = []
    for block in range(10):
        rows += [sample(block, "engine", CELL, i, i, i + 0.5) for i in range(10)]
        for i, (prefill, flags) in enumerate([(1.0, []), (share, ["repeated_prompt"])]):
            start = 20.0 + 5 * i
            first = start + prefill * math.exp(0.05 * rng.standard_normal())
            tokens = [round((first + 0.01 * t) * S) for t in range(16)]
            found = [*flags, "foreign_cpu"] if disturbed and flags else flags
            rows.append(
                sample(block, "engine", CELL, i, start, start + 3, phase="warmup", token_ns=tokens, flags=found)
            )
    return run_of(rows)


def test_a_prefix_cache_is_named_with_what_it_saves() -> None:
    run = _repeating(0.12)
    (found,) = findings_of(run, "prefix cache")
    assert found.ci_low < 0.12 < found.ci_high
    assert "answers repeated prompts from a cache: 0.12× the prefill time" in shown(run)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.75])
def test_an_engine_that_reads_a_prompt_again_is_passed_over_in_silence(share: float) -> None:
    run = _repeating(share)
    (found,) = findings_of(run, "prefix cache")
    assert found.verdict == "not cached"
    assert "prefix cache" not in shown(run)


def test_repeated_prompts_are_never_compared_and_disturbed_ones_not_even_looked_at() -> None:
    report = analyse([_repeating(0.12)]).report
    assert {s.n_samples for s in report.summaries if s.metric == "ttft_seconds"} == {100}
    assert not any("repeated_prompt" in warning for warning in report.warnings)
    assert findings_of(_repeating(0.12, disturbed=True), "prefix cache") == []


# --- several cells -------------------------------------------------------------------------------------------------


def test_the_mean_ratio_over_cells_covers_the_truth_and_is_missing_where_a_cell_is() -> None:
    cells = (Cell(10, 8, 1), Cell(50, 8, 1), Cell(200, 8, 1))
    run = simulate_run(Design(ratio=1 / 1.25), cells=cells)
    (found,) = findings_of(run, "geometric mean")
    assert found.ci_low < 1.25 < found.ci_high
    # A mean of three cells is surer than one of them.
    single = [c for c in analyse([run]).report.comparisons if c.primary]
    assert found.ci_high / found.ci_low < min(c.ci_high / c.ci_low for c in single)
    lost = (run.columns.engine == 1) & (run.columns.cell == 2)
    excluded = np.where(lost, 1, run.columns.excluded)
    columns = dataclasses.replace(run.columns, excluded=excluded, reasons=("", "crash"))
    assert findings_of(dataclasses.replace(run, columns=columns), "geometric mean") == []


def test_there_is_no_mean_over_rates_that_were_offered() -> None:
    cells = (Cell(50, 8, 1), Cell(50, 8, 4, "poisson", 2.0))
    assert findings_of(simulate_run(cells=cells), "geometric mean") == []


def test_one_cell_needs_no_mean() -> None:
    assert findings_of(simulate_run(), "geometric mean") == []


def test_components_are_told_as_shares_largest_first() -> None:
    cell = Cell(50, 0, 1, variant="prefill")
    parts = {"attention_seconds": 0.03, "ffn_seconds": 0.06, "norm_seconds": 0.009, "other_seconds": 0.001}
    rows = [sample(b, "engine", cell, i, i, i + 1, metrics=parts, token_ns=[]) for b in range(3) for i in range(10)]
    (found,) = findings_of(run_of(rows, scenario={"kind": "profile"}), "components")
    assert found.text == "ffn 60.0 %, attention 30.0 %, norm 9.0 %, other 1.0 % of 0.1 s"
    assert found.details["attention_share"] == pytest.approx(0.3)


def test_shares_of_pooled_runs_rest_on_runs_as_the_means_do() -> None:
    cell = Cell(50, 0, 1, variant="prefill")

    def profile(blocks: int, ffn: float, attention: float) -> Run:
        parts = {"attention_seconds": attention, "ffn_seconds": ffn}
        rows = [
            sample(b, "engine", cell, i, i, i + 1, metrics=parts, token_ns=[]) for b in range(blocks) for i in (0, 1)
        ]
        return run_of(rows, scenario={"kind": "profile"})

    # A run of nine blocks and one of three: over launches ffn would have 0.75 of the time.
    analysis = analyse([profile(9, 0.9, 0.1), profile(3, 0.3, 0.7)])
    found = [finding for finding in analysis.report.findings or [] if finding.topic in ("components", "bottleneck")]
    assert sorted(finding.topic for finding in found) == ["bottleneck", "components"]
    for finding in found:
        assert finding.details["ffn_share"] == pytest.approx(0.6)


def test_findings_stand_in_markdown_and_are_absent_where_there_are_none() -> None:
    assert "- prefix cache: engine: answers repeated prompts" in to_markdown(analyse([_repeating(0.12)]))
    assert not analyse([simulate_run()]).report.findings


def test_a_generator_that_lagged_in_every_launch_makes_the_cell_invalid() -> None:
    def rows(late: Callable[[int], bool]) -> list[Sample]:
        return [
            row
            for block in range(10)
            for engine in ("baseline", "engine")
            for row in queueing_server(8, 40, 16, lambda: 0.1).samples(block, engine, Cell(50, 16, 8), 8)
            if not (late(block) and row.flags.append("late_dispatch"))
        ]

    told = "engine, prompt 50 → output 16 tokens, 8 users: invalid: the load generator lagged in every launch"
    every = analyse([run_of(rows(lambda _: True))]).report
    assert any(told in warning for warning in every.warnings)
    assert [c for c in every.comparisons if c.verdict != "withheld"] == []
    some = analyse([run_of(rows(lambda block: block < 3))]).report
    assert not any("invalid" in warning for warning in some.warnings)
    assert {c.n_launches for c in some.comparisons} == {7}


# --- saturation ----------------------------------------------------------------------------------------------------


def _swept(rng: np.random.Generator, rates: tuple[float, ...], *, batching: bool, blocks: int = 5) -> Run:
    rows = []
    for block in range(blocks):
        pace = math.exp(0.02 * rng.standard_normal())
        for number, rate in enumerate(rates):
            cell = Cell(50, 16, 8, "poisson", rate)
            arrivals = np.cumsum(rng.exponential(1 / rate, 88))
            if batching:
                served = batching_server(
                    8,
                    0,
                    16,
                    prefill=0.02 * pace,
                    step=lambda n, pace=pace: pace * (0.01 + 0.001 * n),
                    arrivals=arrivals,
                )
            else:
                served = queueing_server(1, 0, 16, lambda: 0.1 * pace * math.exp(0.1 * rng.standard_normal()), arrivals)  # noqa: B023
            rows += served.samples(block, "engine", cell, warmups=8, offset=1000.0 * number)
    return run_of(rows)


SWEEP = Cell(50, 16, 8, "poisson")


@pytest.mark.parametrize("batching", [False, True], ids=["queueing", "batching"])
def test_capacity_is_found_by_a_sweep(batching: bool) -> None:
    if batching:
        truth = 4000 / max(t[-1] for t in batching_server(8, 4000, 16).tokens)
    else:
        truth = 1 / (0.1 * math.exp(0.1**2 / 2))
    held = 0
    for seed in range(10):
        run = _swept(np.random.default_rng(seed), tuple(x * truth for x in (0.5, 0.8, 1.5)), batching=batching)
        (found,) = [s for s in analyse([run]).report.summaries if s.metric == "saturation_requests_per_second"]
        assert found.cell == SWEEP
        assert found.mean == pytest.approx(truth, rel=0.05)
        held += found.ci_low <= truth <= found.ci_high
    # Nine or ten expected; six or fewer of a 95 % interval have a chance of 0.1 %.
    assert held >= 7


def test_a_sweep_too_short_to_fill_the_batch_has_no_capacity() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for block in range(5):
        for number, rate in enumerate((9.0, 18.0, 27.0)):
            served = batching_server(8, 0, 16, arrivals=np.cumsum(rng.exponential(1 / rate, 12)))
            cell = Cell(50, 16, 8, "poisson", rate)
            rows += served.samples(block, "engine", cell, warmups=2, offset=1000.0 * number)
    assert findings_of(run_of(rows), "saturation")[0].verdict == "not reached"


def test_a_sweep_that_stays_below_capacity_says_so_and_has_no_capacity() -> None:
    run = _swept(np.random.default_rng(1), (2.0, 4.0, 5.0), batching=False)
    report = analyse([run]).report
    assert not [s for s in report.summaries if s.metric == "saturation_requests_per_second"]
    (found,) = findings_of(run, "saturation")
    assert found.verdict == "not reached"
    assert found.value == pytest.approx(5.0, rel=0.15)
    assert found.text.startswith("saturation was not reached, or not for long: at")


def test_a_sweep_of_two_rates_says_why_it_has_no_capacity_where_that_is_the_question() -> None:
    run = _swept(np.random.default_rng(1), (5.0, 15.0), batching=False)
    assert findings_of(run, "saturation") == []
    run.manifest.scenario["primary_metric"] = "saturation_requests_per_second"
    analysis = analyse([run])
    told = "engine: no saturation_requests_per_second: no capacity: 2 rates gave answers that count, a capacity takes 3"
    assert told in analysis.report.warnings[:2]
    assert nothing(analysis) == f"Nothing to rank: {told}."


def test_an_engine_without_the_primary_metric_is_named_beside_those_that_have_it() -> None:
    run = _swept(np.random.default_rng(1), (5.0, 15.0), batching=False)
    run.manifest.scenario["primary_metric"] = "goodput_requests_per_second"
    told = "engine: no goodput_requests_per_second: the scenario has no limits under [goodput]"
    assert told in analyse([run]).report.warnings[:2]
