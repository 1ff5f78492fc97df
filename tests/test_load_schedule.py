"""When requests arrive: the distributions that were asked for, the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from enginecmp.errors import UsageError
from enginecmp.loadgen.schedule import arrival_seed, arrivals, gaps


def test_poisson_gaps_are_exponential() -> None:
    drawn = gaps("poisson", 4.0, 1.0, 4000, seed=1)
    assert stats.kstest(drawn, stats.expon(scale=0.25).cdf).pvalue > 0.01


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_shape_of_their_burstiness(burstiness: float) -> None:
    drawn = gaps("gamma", 4.0, burstiness, 4000, seed=2)
    assert stats.kstest(drawn, stats.gamma(burstiness, scale=0.25 / burstiness).cdf).pvalue > 0.01
    # vLLM's benchmark documents the coefficient of variation of its --burstiness as 1 / sqrt(burstiness).
    assert np.std(drawn) / np.mean(drawn) == pytest.approx(burstiness**-0.5, rel=0.1)


def test_poisson_gaps_are_not_called_gamma_ones() -> None:
    drawn = gaps("poisson", 4.0, 1.0, 4000, seed=1)
    assert stats.kstest(drawn, stats.gamma(0.25, scale=1.0).cdf).pvalue < 1e-6


def test_constant_arrivals_are_evenly_spaced() -> None:
    due = arrivals("constant", 8.0, warmups=1, requests=4)
    assert due.tolist() == [0, 125_000_000, 250_000_000, 375_000_000, 500_000_000]


@pytest.mark.parametrize("arrival", ["poisson", "gamma"])
def test_the_same_seed_gives_the_same_schedule_and_another_seed_another(arrival: str) -> None:
    draw = [arrivals(arrival, 3.0, warmups=2, requests=50, burstiness=0.5, seed=seed) for seed in (5, 5, 6)]  # type: ignore[arg-type]
    assert draw[0].tolist() == draw[1].tolist()
    assert draw[0].tolist() != draw[2].tolist()


def test_arrivals_begin_at_once_and_rise() -> None:
    due = arrivals("poisson", 100.0, warmups=3, requests=200, seed=1)
    assert due[0] == 0
    assert (np.diff(due) >= 0).all()
    assert len(due) == 203


def test_a_time_is_filled_at_the_rate_that_was_asked_for() -> None:
    # Of Poisson arrivals in T seconds at rate r there are r T, give or take sqrt(r T): here 20,000 +- 141.
    due = arrivals("poisson", 100.0, warmups=10, requests=5, seconds=200.0, seed=3)
    measured = due[10:]
    assert len(measured) == pytest.approx(20_000, abs=4 * 141)
    assert measured[-1] - measured[0] <= 200e9
    assert measured[-1] - measured[0] > 199e9


def test_a_time_that_is_too_short_still_gives_the_least_number_of_requests() -> None:
    assert len(arrivals("poisson", 1.0, warmups=1, requests=10, seconds=0.5, seed=1)) == 11


def test_more_time_begins_with_the_same_arrivals() -> None:
    short = arrivals("gamma", 5.0, warmups=1, requests=5, seconds=4.0, burstiness=0.5, seed=9)
    long = arrivals("gamma", 5.0, warmups=1, requests=5, seconds=40.0, burstiness=0.5, seed=9)
    assert long[: len(short)].tolist() == short.tolist()


def test_a_trace_is_replayed_as_it_was_recorded() -> None:
    due = arrivals("trace", 1.0, warmups=1, requests=99, trace_seconds=(3.0, 3.5, 3.5, 7.25))
    assert due.tolist() == [0, 500_000_000, 500_000_000, 4_250_000_000]


def test_a_trace_ends_with_the_time_that_is_measured() -> None:
    due = arrivals("trace", 1.0, warmups=1, requests=1, seconds=3.0, trace_seconds=(0.0, 1.0, 2.0, 4.0, 4.5))
    assert due.tolist() == [0, 1_000_000_000, 2_000_000_000, 4_000_000_000]


def test_a_trace_that_only_warms_up_is_refused() -> None:
    with pytest.raises(UsageError, match=r"more than 2 arrivals.*it has 2"):
        arrivals("trace", 1.0, warmups=2, requests=1, trace_seconds=(0.0, 1.0))


def test_every_block_and_cell_has_arrivals_of_its_own() -> None:
    seeds = {arrival_seed(seed, block, cell) for seed in (1, 2) for block in range(3) for cell in range(3)}
    assert len(seeds) == 18
    assert arrival_seed(1, 2, 0) == arrival_seed(1, 2, 0)
