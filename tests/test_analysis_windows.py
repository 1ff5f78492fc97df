"""Rates under load against servers whose throughput is known."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_load import S, batching_server, queueing_server, run_of, sample

from enginecmp.format.records import Cell, Sample
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.launches import LaunchMeans, launch_means, measured
from enginecmp_analysis.data.metrics import METRICS
from enginecmp_analysis.data.simulate import simulate_run
from enginecmp_analysis.data.sweep import Waiting, _capacity, merged, waiting
from enginecmp_analysis.data.windows import served_inside

USERS = Cell(50, 16, 8)


def _means(rows: list[Sample], cell: Cell | None, **scenario: object) -> dict[str, LaunchMeans]:
    run = run_of(rows, scenario=scenario)
    found = launch_means([run], METRICS, [measured(run.columns)])
    return {name: means for (engine, of, name), means in found.items() if of == cell and engine == "engine"}


def _rate(rows: list[Sample], cell: Cell, name: str = "throughput_tokens_per_second") -> float:
    (value,) = _means(rows, cell)[name].means
    return float(value)


def test_a_queueing_engine_under_full_load_has_the_throughput_of_one_service_after_the_other() -> None:
    served = queueing_server(8, 60, 16, lambda: 0.5)
    rows = served.samples(0, "engine", USERS, warmups=8)
    assert _rate(rows, USERS) == pytest.approx(16 / 0.5, rel=1e-6)
    assert _rate(rows, USERS, "requests_per_second") == pytest.approx(2.0, rel=1e-6)
    assert _means(rows, USERS)["queue_seconds"].means[0] == pytest.approx(7 * 0.5)


@pytest.mark.parametrize("total", [32, 40, 43, 61])
def test_a_batching_engine_has_its_long_run_throughput_whenever_it_stops(total: int) -> None:
    truth = _rate(batching_server(8, 2000, 16).samples(0, "engine", USERS, warmups=8), USERS)
    rows = batching_server(8, total, 16).samples(0, "engine", USERS, warmups=8)
    assert _rate(rows, USERS) == pytest.approx(truth, rel=0.03)


def test_from_the_first_start_to_the_last_end_the_draining_tail_would_count() -> None:
    truth = _rate(batching_server(8, 2000, 16).samples(0, "engine", USERS, warmups=8), USERS)
    rows = [r for r in batching_server(8, 43, 16).samples(0, "engine", USERS, warmups=8) if r.phase == "measure"]
    spent = (max(r.end_ns for r in rows) - min(r.start_ns for r in rows)) / S
    # What the window is for: without it, the rate depends on where the run happens to stop.
    assert len(rows) * 16 / spent < 0.97 * truth


def test_tokens_of_warm_up_requests_still_under_way_count() -> None:
    cell = Cell(10, 4, 2)
    # One warm-up request is in flight when the first measured one is sent, at second 1.
    rows = [
        sample(0, "engine", cell, 0, 0.0, 3.0, phase="warmup", token_ns=[round(t * S) for t in (0.5, 1.5, 2.5, 3.0)]),
        *(sample(0, "engine", cell, i, 1.0 + i, 2.0 + i) for i in range(5)),
    ]
    # Until the last sending at second 5: three of the warm-up's four tokens, and all of four requests.
    assert _rate(rows, cell) == pytest.approx((3 + 16) / 4)
    # Two thirds of the warm-up's service and four whole ones.
    assert _rate(rows, cell, "requests_per_second") == pytest.approx((2 / 3 + 4) / 4)


def test_a_stamp_that_stands_for_several_tokens_weighs_as_many() -> None:
    cell = Cell(10, 8, 2)
    rows = [sample(0, "engine", cell, 0, 0.0, 0.5, phase="warmup", token_ns=[S // 4, S // 2])]
    for i in range(6):
        stamps = [round((1 + i + t) * S) for t in (0.5, 1.0)]
        rows.append(sample(0, "engine", cell, i, 1.0 + i, 2.0 + i, token_ns=stamps))
    assert _rate(rows, cell) == pytest.approx(8.0)


def test_fewer_than_two_rounds_fall_back_to_all_of_it_and_say_so() -> None:
    def rows(total: int) -> list[Sample]:
        return [
            row
            for engine in ("baseline", "engine")
            for row in queueing_server(8, total, 16, lambda: 0.5).samples(0, engine, USERS, warmups=8)
        ]

    few = rows(8 + 15)
    begin = min(r.start_ns for r in few if r.phase == "measure")
    assert _rate(few, USERS) == pytest.approx(15 * 16 / ((max(r.end_ns for r in few) - begin) / S))
    told = "throughput counts the filling and the draining of the load"
    assert any(told in warning for warning in analyse([run_of(few)]).report.warnings)
    assert not any(told in warning for warning in analyse([run_of(rows(8 + 16))]).report.warnings)


def test_without_warm_up_the_filling_is_no_full_load() -> None:
    rows = batching_server(8, 43, 16).samples(0, "engine", USERS, warmups=0)
    begin, end = min(r.start_ns for r in rows), max(r.end_ns for r in rows)
    assert _rate(rows, USERS) == pytest.approx(43 * 16 / ((end - begin) / S))


def _waits(*waits: float) -> Waiting:
    """One request a second, each served for one second after its wait."""
    cell = Cell(50, 16, 8, "poisson", 1.0)
    rows = [
        sample(0, "engine", cell, i, i + wait, i + wait + 1, intended_ns=i * S) for i, wait in enumerate([*waits, 0.0])
    ]
    columns = run_of(rows).columns
    everything = np.arange(len(rows))
    return waiting(columns, everything, everything)


def test_waiting_for_a_full_engine_counts_and_for_its_next_step_does_not() -> None:
    assert _waits(0.5, 0.5, 0.5, 0.5).share == pytest.approx(0.5)
    assert _waits(0.2, 0.2, 0.2, 0.2).share == 0.0
    found = _waits(0.5, 0.5, 0.0, 0.0)
    # Twice half a second of four; in the second one half of the first request is served, in the first one nothing.
    assert (found.share, found.seconds, found.served) == (0.25, 1.0, pytest.approx(0.5))


def test_the_most_requests_at_once_do_not_count_one_that_ends_as_the_next_begins() -> None:
    assert _waits(0.0, 0.0, 0.0).most == 1
    assert _waits(0.5, 0.0, 0.0).most == 2


def test_capacity_takes_a_saturated_largest_rate_and_three_rounds_served() -> None:
    def rate(offered: float, share: float, served: float, most: int = 4) -> Waiting:
        return Waiting(share, share * 10, served, offered, most)

    low, high = rate(1.0, 0.1, 1.0), rate(3.0, 0.9, 18.0)
    assert _capacity([low, rate(2.0, 0.6, 12.0), high]) == pytest.approx(30 / 15)
    assert np.isnan(_capacity([low, rate(2.0, 0.6, 12.0), rate(3.0, 0.4, 8.0)]))
    assert np.isnan(_capacity([low, rate(2.0, 0.1, 1.0), rate(3.0, 0.9, 11.9)]))
    assert _capacity([low, rate(2.0, 0.1, 1.0), rate(3.0, 0.9, 12.0)]) == pytest.approx(12 / 9)


def test_service_inside_a_window_counts_in_part() -> None:
    columns = run_of([sample(0, "engine", USERS, 0, 1.0, 3.0), sample(0, "engine", USERS, 1, 5.0, 6.0)]).columns
    assert served_inside(columns, np.array([0, 1]), 2 * S, 10 * S) == pytest.approx(1.5)
    assert served_inside(columns, np.array([0, 1]), 7 * S, 10 * S) == 0.0


def test_intervals_that_touch_or_overlap_are_one() -> None:
    begins, ends = np.array([5, 0, 2, 8, 9]), np.array([7, 2, 4, 8, 12])
    assert merged(begins, ends) == [(0, 4), (5, 7), (9, 12)]


LIMITS = {"ttft_seconds": 0.5, "tpot_seconds": 0.2, "e2e_seconds": None}


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    cell = Cell(10, 5, 1)
    rows = [
        # 1 s each: first token after 0.2 s, 0.2 s a token.
        sample(0, "engine", cell, 0, 0.0, 1.0),
        # Too late a first token, then too slow a token.
        sample(0, "engine", cell, 1, 1.0, 2.0, token_ns=[round(t * S) for t in (1.6, 1.7, 1.8, 1.9, 2.0)]),
        sample(0, "engine", cell, 2, 2.0, 3.2),
        sample(0, "engine", cell, 3, 3.2, 4.2),
    ]
    found = _means(rows, cell, goodput=LIMITS)["goodput_requests_per_second"]
    assert found.means.tolist() == [pytest.approx(2 / 4 * 4 / 4.2)]


def test_tokens_that_count_are_those_of_requests_that_keep_every_limit() -> None:
    cell = Cell(10, 5, 1)
    stamps = [round(t * S) for t in (1.2, 1.4, 1.6)]
    rows = [
        sample(0, "engine", cell, 0, 0.0, 1.0),
        # Shorter than asked, and in time.
        sample(0, "engine", cell, 1, 1.0, 1.6, token_ns=stamps, output_tokens=3),
        # All of its tokens came, too late.
        sample(0, "engine", cell, 2, 2.0, 9.0),
        # One launch answers nothing in time.
        sample(1, "engine", cell, 0, 0.0, 9.0),
    ]
    found = _means(rows, cell, goodput={"e2e_seconds": 2.0})
    tokens, requests = found["goodput_tokens_per_second"], found["goodput_requests_per_second"]
    assert tokens.means.tolist() == [pytest.approx((5 + 3) / 9.0), 0.0]
    assert requests.means.tolist() == [pytest.approx(2 / 9.0), 0.0]


def test_requests_that_failed_or_never_started_count_against_goodput() -> None:
    cell = Cell(10, 5, 4, "poisson", 1.0)
    rows = [sample(0, "engine", cell, 0, -0.5, 0.2, phase="warmup")]
    rows += [sample(0, "engine", cell, i, i, i + 0.9) for i in range(8)]
    bad: dict[str, object] = {"status": "timeout", "token_ns": [], "output_tokens": 0}
    rows += [
        sample(0, "engine", cell, i, i, i, start_ns=20 * S, end_ns=20 * S, **bad)  # type: ignore[arg-type]
        for i in range(8, 11)
    ]
    found = _means(rows, cell, goodput={"ttft_seconds": 1.0})
    # Eleven were sent in ten seconds after the first, eight were good.
    assert found["goodput_requests_per_second"].means.tolist() == [pytest.approx(8 / 11 * 1.0)]


@pytest.mark.parametrize("total", [32, 40, 43])
def test_users_in_step_have_the_goodput_of_what_they_get(total: int) -> None:
    rows = batching_server(8, total, 16).samples(0, "engine", USERS, warmups=8)
    found = _means(rows, USERS, goodput={"e2e_seconds": 100.0})
    # Eight are sent at once, so one more or less in the window would be an eighth of a round.
    assert found["goodput_requests_per_second"].means == pytest.approx(found["requests_per_second"].means)


def test_failures_of_users_cost_goodput_their_time() -> None:
    rows = queueing_server(8, 72, 16, lambda: 0.5).samples(0, "engine", USERS, warmups=8)
    for row in rows:
        # Every fourth request takes its time and fails.
        if row.phase == "measure" and row.index % 4 == 0:
            row.status, row.token_ns, row.output_tokens = "error", [], 0
    found = _means(rows, USERS, goodput={"e2e_seconds": 100.0})
    assert found["goodput_requests_per_second"].means == pytest.approx(2.0 * 3 / 4, rel=0.05)


def test_a_launch_that_answered_nothing_has_a_goodput_of_zero_not_none() -> None:
    cell = Cell(10, 5, 1)
    good = [sample(0, "engine", cell, i, i, i + 1) for i in range(4)]
    lost = [sample(1, "engine", cell, i, i, i + 1, status="timeout", token_ns=[]) for i in range(4)]
    found = _means(good + lost, cell, goodput={"e2e_seconds": 2.0})["goodput_requests_per_second"]
    assert dict(zip(found.blocks, found.means.tolist(), strict=True)) == {(0, 0): 1.0, (0, 1): 0.0}


def test_without_limits_there_is_no_goodput() -> None:
    cell = Cell(10, 5, 1)
    rows = [sample(0, "engine", cell, i, i, i + 1) for i in range(4)]
    assert "goodput_requests_per_second" not in _means(rows, cell)
    assert "goodput_requests_per_second" not in _means(rows, cell, goodput={"ttft_seconds": None})


def test_scaling_is_throughput_over_that_of_as_many_single_users() -> None:
    one, many = Cell(50, 16, 1), Cell(50, 16, 8)
    rows = queueing_server(1, 20, 16, lambda: 0.5).samples(0, "engine", one, warmups=1)
    rows += batching_server(8, 80, 16).samples(0, "engine", many, warmups=8, offset=100.0)
    found = _means(rows, many)
    expected = found["throughput_tokens_per_second"].means[0] / (8 * 16 / 0.5)
    assert found["scaling_efficiency"].means.tolist() == [pytest.approx(expected, rel=1e-3)]
    assert "scaling_efficiency" not in _means(rows, one)


def test_a_queueing_engine_scales_as_one_over_the_users() -> None:
    one, many = Cell(50, 16, 1), Cell(50, 16, 8)
    rows = queueing_server(1, 20, 16, lambda: 0.5).samples(0, "engine", one, warmups=1)
    rows += queueing_server(8, 80, 16, lambda: 0.5).samples(0, "engine", many, warmups=8, offset=100.0)
    assert _means(rows, many)["scaling_efficiency"].means[0] == pytest.approx(1 / 8, rel=1e-3)


def test_a_launch_a_cell_pairs_by_block_and_scales_across_launches() -> None:
    one, many = Cell(50, 16, 1), Cell(50, 16, 8)
    rows = []
    for block in range(3):
        for cell, users in ((one, 1), (many, 8)):
            part = queueing_server(users, 10 * users, 16, lambda: 0.5 + 0.01 * block).samples(  # noqa: B023
                block, "engine", cell, warmups=users, offset=100.0 * users
            )
            for row in part:
                row.launch = f"b{block}-engine-c{users}"
            rows += part
    found = _means(rows, many)["scaling_efficiency"]
    assert found.blocks == [(0, 0), (0, 1), (0, 2)]
    assert found.means == pytest.approx(1 / 8, rel=1e-3)


def test_loading_has_a_cell_of_its_own_only_in_a_scenario_about_loading() -> None:
    cold, warm = Cell(50, 1, 1, variant="cold"), Cell(50, 1, 1, variant="warm")
    rows = []
    for cell, seconds in ((cold, 4.0), (warm, 1.0)):
        load = sample(0, "engine", cell, 0, 0.0, seconds, phase="load", token_ns=[], output_tokens=0)
        load.launch, load.metrics = (
            f"b0-engine-{cell.variant}",
            {"startup_seconds": 0.25, "load_map_seconds": seconds / 2},
        )
        first = sample(0, "engine", cell, 0, 5.0, 6.0, metrics={"first_token_from_start_seconds": seconds + 0.5})
        first.launch = load.launch
        rows += [load, first]
    apart = _means(rows, cold, kind="load")
    assert apart["load_seconds"].means.tolist() == [4.0]
    assert apart["startup_seconds"].means.tolist() == [0.25]
    assert apart["load_map_seconds"].means.tolist() == [2.0]
    assert "load_parse_seconds" not in apart
    assert apart["first_token_from_start_seconds"].means.tolist() == [4.5]
    assert "ttft_seconds" not in apart
    together = _means(rows, None)
    assert sorted(together["load_seconds"].means.tolist()) == [1.0, 4.0]


def test_operations_are_timed_by_call_and_not_by_request() -> None:
    cell = Cell(512, 0, 1, variant="encode")
    rows = [
        sample(0, "engine", cell, i, i, i + 0.1, metrics={"calls": 100.0, "operation_seconds": 0.001}, token_ns=[])
        for i in range(10)
    ]
    found = _means(rows, cell, kind="operation")
    assert found["operation_seconds"].means.tolist() == [pytest.approx(0.001)]
    assert found["operation_tokens_per_second"].means.tolist() == [pytest.approx(512_000)]
    assert set(found) == {"operation_seconds", "operation_tokens_per_second"}


def test_metrics_that_only_some_samples_carry_stay_with_their_samples() -> None:
    rows = [sample(0, "engine", USERS, i, i, i + 1) for i in range(4)]
    rows[2].metrics = {"operation_seconds": 7.0, "somebody_elses_number": 1.0}
    columns = run_of(rows).columns
    assert np.isnan(columns.metric("operation_seconds")).tolist() == [True, True, False, True]
    assert columns.metric("operation_seconds")[2] == 7.0
    assert list(columns.metrics) == ["operation_seconds"]
    assert np.isnan(columns.metric("rss_bytes")).all()


def test_plain_runs_have_no_column_of_metrics() -> None:
    assert simulate_run().columns.metrics == {}
