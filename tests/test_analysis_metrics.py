"""Metrics against stamps written by hand: every boundary once."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_load import run_of, sample, shown

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.columns import ColumnBuilder, Columns
from enginecmp_analysis.data.launches import LaunchMeans, launch_means, measured
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.metrics import METRICS, find_metric
from enginecmp_analysis.data.simulate import samples, simulate_run

S = 1_000_000_000
CELL = Cell(10, 3, 1)


def _sample(**changes: object) -> Sample:
    values: dict[str, object] = {
        "block": 0,
        "order": 0,
        "launch": "b0-a",
        "engine": "a",
        "cell": CELL,
        "index": 0,
        "phase": "measure",
        "intended_ns": 0,
        "start_ns": 0,
        "token_ns": [2 * S, 3 * S, 6 * S],
        "end_ns": 7 * S,
        "prompt_tokens": 10,
        "output_tokens": 3,
        "status": "ok",
    }
    return Sample(**(values | changes))  # type: ignore[arg-type]


def _columns(*samples: Sample) -> Columns:
    builder = ColumnBuilder()
    for row in samples:
        builder.add(row)
    return builder.build()


def _means(*samples: Sample, cell: Cell | None = CELL, include_flagged: bool = False) -> dict[str, LaunchMeans]:
    run = Run(simulate_run().manifest, _columns(*samples))
    found = launch_means([run], METRICS, [measured(run.columns, include_flagged=include_flagged)])
    return {name: means for (_, of, name), means in found.items() if of == cell}


def test_every_metric_of_one_request_by_hand() -> None:
    found = {name: means.means.tolist() for name, means in _means(_sample()).items()}
    assert found == {
        "ttft_seconds": [2.0],
        "itl_seconds": [2.0],
        "tpot_seconds": [2.0],
        "e2e_seconds": [7.0],
        "prefill_tokens_per_second": [5.0],
        "decode_tokens_per_second": [0.5],
        "throughput_tokens_per_second": [pytest.approx(3 / 7)],
        "requests_per_second": [pytest.approx(1 / 7)],
    }


def test_latency_counts_from_the_intended_start_but_prefill_from_the_real_one() -> None:
    found = _means(_sample(start_ns=1 * S))
    assert found["ttft_seconds"].means.tolist() == [2.0]
    assert found["e2e_seconds"].means.tolist() == [7.0]
    assert found["prefill_tokens_per_second"].means.tolist() == [10.0]


def test_single_gaps_are_kept_for_quantiles_and_do_not_cross_requests() -> None:
    later = _sample(index=1, start_ns=10 * S, intended_ns=10 * S, token_ns=[11 * S, 12 * S, 14 * S], end_ns=14 * S)
    assert _means(_sample(), later)["itl_seconds"].values.tolist() == [1.0, 3.0, 1.0, 2.0]


def test_an_engine_that_hands_out_several_tokens_at_once_has_no_gaps_but_has_tpot() -> None:
    found = _means(_sample(token_ns=[2 * S, 6 * S]))
    assert "itl_seconds" not in found
    assert found["tpot_seconds"].means.tolist() == [2.0]


def test_a_request_of_one_token_has_no_decode_metrics() -> None:
    found = _means(_sample(token_ns=[2 * S], output_tokens=1))
    assert {"itl_seconds", "tpot_seconds", "decode_tokens_per_second"}.isdisjoint(found)
    assert "ttft_seconds" in found


def test_a_time_below_the_clocks_resolution_gives_no_rate() -> None:
    found = _means(_sample(token_ns=[2 * S, 2 * S, 2 * S]))
    assert found["tpot_seconds"].means.tolist() == [0.0]
    assert "decode_tokens_per_second" not in found


def test_stamps_far_from_boot_lose_no_nanoseconds() -> None:
    boot = 2**62
    found = _means(
        _sample(start_ns=boot, intended_ns=boot, token_ns=[boot + 3, boot + 5, boot + 7], end_ns=boot + 9),
    )
    assert found["ttft_seconds"].means.tolist() == [pytest.approx(3e-9)]
    assert found["tpot_seconds"].means.tolist() == [pytest.approx(2e-9)]


def test_load_time_is_of_the_whole_launch_and_warm_up_is_not_measured() -> None:
    load = _sample(phase="load", token_ns=[], output_tokens=0, start_ns=S, end_ns=4 * S)
    warmup = _sample(phase="warmup")
    assert {name: m.means.tolist() for name, m in _means(load, warmup, cell=None).items()} == {"load_seconds": [3.0]}
    assert _means(load, warmup) == {}


@pytest.mark.parametrize("change", [{"status": "timeout"}, {"flags": ["foreign_cpu"]}])
def test_failed_and_flagged_requests_are_left_out(change: dict[str, object]) -> None:
    found = _means(_sample(), _sample(index=1, start_ns=8 * S, end_ns=30 * S, token_ns=[9 * S], **change))
    assert found["e2e_seconds"].means.tolist() == [7.0]
    assert found["e2e_seconds"].requests.tolist() == [1]


def test_flagged_requests_can_be_asked_for_and_failed_ones_cannot() -> None:
    flagged, failed = _sample(index=1, flags=["throttled"]), _sample(index=2, status="error")
    assert _means(_sample(), flagged, failed, include_flagged=True)["e2e_seconds"].requests.tolist() == [2]


def test_throughput_takes_the_slot_of_a_left_out_request_out_of_its_window() -> None:
    def at(second: int, **changes: object) -> Sample:
        stamps = [(second + i) * S for i in (2, 3, 6)]
        start = second * S
        return _sample(start_ns=start, intended_ns=start, token_ns=stamps, end_ns=start + 7 * S, **changes)

    steady = _means(at(0), at(10, index=1), at(20, index=2))["throughput_tokens_per_second"].means
    spoilt = _means(at(0), at(10, index=1, flags=["throttled"]), at(20, index=2))["throughput_tokens_per_second"].means
    assert steady.tolist() == [pytest.approx(9 / 27)]
    # Two requests in 27 - 10 seconds: the ten seconds of the flagged one are gone with its tokens.
    assert spoilt.tolist() == [pytest.approx(6 / 17)]


@pytest.mark.parametrize(
    ("change", "rates"),
    [
        ({}, [pytest.approx(9 / 8)]),
        # A user waits for a failed request too and gets nothing.
        ({"status": "timeout"}, [pytest.approx(6 / 8)]),
        ({"flags": ["throttled"]}, []),
    ],
    ids=["all well", "one failed", "one flagged"],
)
def test_throughput_of_overlapping_requests(change: dict[str, object], rates: list[object]) -> None:
    cell = Cell(10, 3, 2)

    def at(start: int, index: int, **more: object) -> Sample:
        stamps = [start + i * S for i in (2, 3, 6)]
        return _sample(
            cell=cell, index=index, start_ns=start, intended_ns=start, token_ns=stamps, end_ns=start + 7 * S, **more
        )

    found = _means(at(0, 0), at(S // 2, 1, **change), at(S, 2), cell=cell)
    means = found.get("throughput_tokens_per_second")
    assert (means.means.tolist() if means else []) == rates


def test_launch_means_weigh_gaps_not_requests_and_keep_launches_apart() -> None:
    found = _means(_sample(), _sample(launch="b1-a", block=1, token_ns=[1 * S, 2 * S, 3 * S]))
    assert found["itl_seconds"].means.tolist() == [2.0, 1.0]
    assert found["itl_seconds"].blocks == [(0, 0), (0, 1)]
    assert [part.tolist() for part in found["itl_seconds"].per_launch()] == [[1.0, 3.0], [1.0, 1.0]]


def test_launch_means_do_not_depend_on_the_order_of_lines() -> None:
    run = simulate_run(engines=("x", "y"), cells=(Cell(10, 4, 1), Cell(20, 4, 1)))
    rows = samples(run.columns)
    np.random.default_rng(1).shuffle(rows)
    shuffled = Run(run.manifest, _columns(*rows))

    def by_block(one: Run) -> dict[object, dict[object, list[float]]]:
        found = launch_means([one], METRICS, [measured(one.columns)])
        # The mean, and the single values in the order of time.
        return {
            key: {b: [mean, *part] for b, mean, part in zip(m.blocks, m.means, m.per_launch(), strict=True)}
            for key, m in found.items()
        }

    expected, found = by_block(run), by_block(shuffled)
    assert found.keys() == expected.keys()
    for key, means in expected.items():
        assert found[key].keys() == means.keys()
        for block, values in means.items():
            assert found[key][block] == pytest.approx(values, rel=1e-12)


def test_an_unknown_metric_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'ttft_seconds'"):
        find_metric("ttft_second")


def test_aliases_say_that_one_name_means_two_numbers() -> None:
    # aiperf calls inter-token latency what vLLM calls time per output token.
    assert METRICS["tpot_seconds"].aliases["aiperf"] == "inter_token_latency"
    assert METRICS["itl_seconds"].aliases["aiperf"] == "inter_chunk_latency"
    assert METRICS["itl_seconds"].aliases["vllm"] == "itl"


def test_what_an_engine_tells_of_its_guesses_and_its_device_is_shown_and_guesses_are_not_compared() -> None:
    told = {"tokens_per_step": 2.5, "draft_acceptance_rate": 0.375, "device_prefill_seconds": 0.002}
    held = {"weights_bytes": 1e8, "kv_cache_bytes": 1e6}
    rows = [
        sample(block, engine, Cell(8, 5, 1), i, i, i + 1, metrics=held | told if engine == "engine" else held)
        for block in range(10)
        for engine in ("baseline", "engine")
        for i in range(10)
    ]
    report = analyse([run_of(rows)]).report
    means = {s.metric: (s.engine, s.mean) for s in report.summaries if s.metric in told}
    assert means == {name: ("engine", pytest.approx(value)) for name, value in told.items()}
    assert not [c for c in report.comparisons if c.metric in told]
    # A pass of several tokens reads the weights once: the bandwidth is that of the other engine alone.
    assert {s.engine for s in report.summaries if s.metric.startswith("decode_bandwidth")} == {"baseline"}
    shown_lines = shown(run_of(rows))
    assert "tokens_per_step (exploratory; higher is better)" in shown_lines
    assert "draft_acceptance_rate (exploratory; higher is better)" in shown_lines
