"""The rates of a sweep: what one launch in a closed loop showed, and the grid that is made of it."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from enginecmp.scenarios import load_scenario
from enginecmp.sweep import closed_loop_rate, sweep_rates
from enginecmp.types import Cell, Phase, Sample


def request(phase: Phase, sent_seconds: float, end_seconds: float, users: int) -> Sample:
    sent_ns, end_ns = round(1e9 * sent_seconds), round(1e9 * end_seconds)
    return Sample(
        block=-1, order=0, launch="c", engine="a", cell=Cell(8, 4, users), index=0, phase=phase, intended_ns=sent_ns,
        start_ns=sent_ns, token_ns=[end_ns], end_ns=end_ns, prompt_tokens=8, output_tokens=4, status="ok",
    )  # fmt: skip


def queue(users: int, requests: int, service_seconds: float) -> list[Sample]:
    """Return what a queue gives that serves one request after the other."""
    sent = [0.0] * users
    samples = []
    for number in range(users + requests):
        end = (number + 1) * service_seconds
        samples.append(request("warmup" if number < users else "measure", sent[number], end, users))
        sent.append(end)
    return samples


def rounds(users: int, rounds_measured: int, round_seconds: float) -> list[Sample]:
    """Return what batching gives that works on all users in step."""
    return [
        request("measure" if number else "warmup", number * round_seconds, (number + 1) * round_seconds, users)
        for number in range(1 + rounds_measured)
        for _ in range(users)
    ]


@pytest.mark.parametrize("users", [1, 4, 8])
def test_a_queue_does_one_request_per_service_time(users: int) -> None:
    assert closed_loop_rate(queue(users, 2 * users, 0.25)) == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("rounds_measured", [1, 2, 3])
def test_batching_in_step_does_all_users_per_round(rounds_measured: int) -> None:
    assert closed_loop_rate(rounds(8, rounds_measured, 2.0)) == pytest.approx(4.0, rel=1e-6)


def test_no_answer_is_no_rate() -> None:
    failed = queue(4, 8, 0.25)
    for sample in failed:
        sample.status = "error"
    assert closed_loop_rate(failed) == 0.0
    assert closed_loop_rate([]) == 0.0


def test_one_engine_is_offered_the_multiples_of_what_it_does() -> None:
    assert sweep_rates([10.0], [0.5, 0.8, 1.0, 1.25]) == [5.0, 8.0, 10.0, 12.5]


def test_several_engines_share_one_geometric_grid() -> None:
    rates = sweep_rates([2.0, 4.0], [0.5, 1.0, 2.0])
    # From 0.5 x 2 to 2 x 4 in steps of a factor 2, as dense as the multiples.
    assert rates == [1.0, 2.0, 4.0, 8.0]


@pytest.mark.parametrize("capacity", [1.23, 0.0777, 29.4, 101.0])
def test_the_fastest_engine_is_offered_the_limit_itself(capacity: float) -> None:
    scenario = msgspec.structs.replace(load_scenario("saturation", "full"), calibration={"a": capacity})
    top = sweep_rates([capacity], [0.75, 1.5])[-1]
    assert scenario.offered(Cell(8, 4, 4, "poisson", top), "a")
    assert not scenario.offered(Cell(8, 4, 4, "poisson", 1.02 * top), "a")


def test_engines_far_apart_do_not_make_the_grid_endless() -> None:
    rates = sweep_rates([0.01, 100.0], [0.5, 0.7, 0.9, 1.1])
    assert len(rates) == 8
    assert (rates[0], rates[-1]) == (0.005, 110.0)
    steps = [later / rate for rate, later in itertools.pairwise(rates)]
    assert max(steps) / min(steps) == pytest.approx(1.0, abs=0.02)


def test_a_single_multiple_is_one_rate_per_engine() -> None:
    assert sweep_rates([2.0, 5.0], [0.8]) == [1.6, 4.0]
