"""The rates of a sweep: what one launch in a closed loop showed, and the grid that is made of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest

from enginecmp.format.records import Cell, LaunchRecord, Sample, SamplePhase
from enginecmp.launch.engine_config import EngineConfig
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.sweep import LEAST_RATES, calibrate, closed_loop_rate, rates_for, sweep_rates
from enginecmp.scenarios import Scenario, load_scenario
from enginecmp.scenarios.plan import PlannedLaunch
from enginecmp.types import LoadOptions
from enginecmp_analysis.data import sweep


def request(phase: SamplePhase, sent_seconds: float, end_seconds: float, users: int) -> Sample:
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


FOUR = {"baseline": 1.0, "slow": 1.3, "middle": 1.7, "fast": 4.6}


@pytest.mark.parametrize("multiples", [(0.75, 1.5), (0.5, 0.75, 1.0, 1.25, 1.5), (1.2,), (0.5, 2.0)])
@pytest.mark.parametrize("capacities", [FOUR, {"only": 3.0}, {"a": 1.0, "b": 1.0}, {"a": 0.01, "b": 100.0}])
def test_every_engine_is_offered_three_rates_and_the_largest_is_its_own(
    capacities: dict[str, float], multiples: tuple[float, ...]
) -> None:
    shared = sweep_rates(list(capacities.values()), multiples)
    for capacity in capacities.values():
        rates = rates_for(capacity, shared, multiples, limit=1.5)
        assert len(rates) >= LEAST_RATES
        assert rates == sorted(set(rates))
        assert 0.9 * min(max(multiples), 1.5) <= rates[-1] / capacity <= 1.5 * 1.01


def test_the_shared_rates_are_kept_where_they_do() -> None:
    shared = sweep_rates([2.0, 4.0], [0.5, 1.0, 1.5])
    assert rates_for(4.0, shared, [0.5, 1.0, 1.5], limit=1.5) == shared


def test_host_and_analysis_agree_how_many_rates_make_a_sweep() -> None:
    assert sweep.LEAST_RATES == LEAST_RATES


def test_a_calibrated_sweep_offers_each_engine_its_own_cells(fake: Plugin) -> None:
    def drive(
        scenario: Scenario, planned: PlannedLaunch, config: EngineConfig, keep: Callable[[Sample], None]
    ) -> LaunchRecord:
        for sample in queue(4, 8, 1 / FOUR[config.label]) if config.label in FOUR else []:
            keep(sample)
        return LaunchRecord(launch="c", block=-1, engine=config.label, status="ok", seconds=1.0)

    options = LoadOptions(device="cpu", threads=1, context_tokens=64)
    configs = [EngineConfig(label, fake, options) for label in (*FOUR, "silent")]
    scenario, _ = calibrate(load_scenario("saturation", "quick"), configs, drive, [].append)
    for label, capacity in FOUR.items():
        rates = [cell.rate_per_second for cell in scenario.cells if scenario.offered(cell, label)]
        assert len(rates) >= LEAST_RATES
        assert rates[-1] == pytest.approx(1.5 * capacity, rel=0.1)
    assert not any(scenario.offered(cell, "silent") for cell in scenario.cells)
    assert msgspec.convert(msgspec.to_builtins(scenario), Scenario) == scenario
