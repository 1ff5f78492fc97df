"""What tokens cost: sums done by hand, prices as people write them, intervals that keep their promise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from decision_runs import request, run_of
from simulated_load import batching_server, queueing_server
from simulated_load import run_of as loaded_run

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp_analysis.analyse import analyse
from enginecmp_analysis.data.launches import Key, LaunchMeans
from enginecmp_analysis.data.load import Run
from enginecmp_analysis.data.simulate import Design, simulate_run
from enginecmp_analysis.decisions.money import SPLIT, WHOLE, costs, money
from enginecmp_analysis.decisions.prices import Prices, parse_amount_per_hour, parse_demand, read_prices
from enginecmp_analysis.judge.judge import Options
from enginecmp_analysis.schema.decisions import Money

# 3.6 an hour is a thousandth a second.
THOUSANDTH = Prices("EUR", everything=3.6)


def _money(*runs: Run, prices: Prices = THOUSANDTH) -> Money:
    return money(analyse(list(runs)), prices, Options())


def _means(found: Money, engine: str = "baseline") -> dict[str, float]:
    return {row.metric: row.mean for row in found.rows if row.engine == engine}


def test_one_request_at_a_time_charges_prefill_to_the_input_and_the_rest_to_the_output() -> None:
    # Half a second to the first token, one and a half from there to the end; ten idle seconds are nobody's.
    found = _money(run_of([request(0, 2.0, 0.5), request(12, 14.0, 12.5, index=1)]))
    assert {row.charged for row in found.rows if row.metric.startswith("cost")} == {SPLIT}
    costs = _means(found)
    assert costs["cost_per_million_input_tokens"] == pytest.approx(0.001 * 0.5 / 100 * 1e6)
    assert costs["cost_per_million_output_tokens"] == pytest.approx(0.001 * 1.5 / 5 * 1e6)
    assert costs["cost_per_thousand_requests"] == pytest.approx(0.001 * 2 * 1000)
    # Two requests in fourteen seconds.
    assert costs["requests_per_device_hour"] == pytest.approx(2 / 14 * 3600)


def test_input_and_output_add_up_to_the_request() -> None:
    costs = _means(_money(simulate_run(Design(blocks=1, requests=5))))
    parts = costs["cost_per_million_input_tokens"] * 50 + costs["cost_per_million_output_tokens"] * 16
    assert parts / 1e6 == pytest.approx(costs["cost_per_thousand_requests"] / 1e3)


def test_overlapping_requests_charge_the_whole_window_to_either_side() -> None:
    cell = Cell(100, 5, 2)
    found = _money(run_of([request(0, 2, 1, cell=cell), request(0, 2, 1, cell=cell, index=1)]))
    assert {row.charged for row in found.rows if row.metric.startswith("cost")} == {WHOLE}
    costs = _means(found)
    # Ten tokens out, two hundred in, two requests, in two seconds.
    assert costs["cost_per_million_output_tokens"] == pytest.approx(0.001 * 2 / 10 * 1e6)
    assert costs["cost_per_million_input_tokens"] == pytest.approx(0.001 * 2 / 200 * 1e6)
    assert costs["cost_per_thousand_requests"] == pytest.approx(0.001 * 2 / 2 * 1000)


LOADS = [Cell(50, 16, 4, "poisson", rate) for rate in (1.0, 3.0, 12.0)] + [Cell(50, 16, 8)]


@pytest.mark.parametrize("cell", LOADS)
def test_under_load_a_cost_times_its_rate_is_the_price_and_the_slo_keeps_no_more_than_all(cell: Cell) -> None:
    rows = []
    for block in range(3):
        random = np.random.default_rng(block)
        due = np.cumsum(random.exponential(1 / float(cell.rate_per_second), 60)) if cell.arrival else None
        for number, served in enumerate(
            (
                batching_server(cell.concurrency, 72, 16, step=lambda active: 0.02, arrivals=due),
                queueing_server(8, 72, 16, lambda draw=random: float(draw.gamma(4, 0.05)), arrivals=due),
            )
        ):
            rows += served.samples(block, ("batching", "queueing")[number], cell, warmups=8)
    run = loaded_run(rows, engines=("batching", "queueing"), scenario={"goodput": {"e2e_seconds": 1e6}})
    (group,) = analyse([run]).groups
    found, _ = costs(group, THOUSANDTH)
    for engine in ("batching", "queueing"):
        _check_identities(found, group.means, engine, cell)


def _check_identities(
    found: Mapping[Key, LaunchMeans], means: Mapping[Key, LaunchMeans], engine: str, cell: Cell
) -> None:
    per_request = found[engine, cell, "cost_per_thousand_requests"].means / 1e3
    hourly = found[engine, cell, "requests_per_device_hour"].means
    assert (per_request * hourly).tolist() == pytest.approx([3.6] * 3, rel=1e-12)
    tokens = means[engine, cell, "throughput_tokens_per_second"].means
    per_token = found[engine, cell, "cost_per_million_output_tokens"].means / 1e6
    assert (per_token * tokens * 3600).tolist() == pytest.approx([3.6] * 3, rel=1e-12)
    prompts = found[engine, cell, "cost_per_million_input_tokens"].means / 1e6 * 50
    assert prompts.tolist() == pytest.approx(per_request.tolist(), rel=1e-12)
    # Every request keeps so loose a limit; under overload they are served long after they are sent.
    at_slo = found[engine, cell, "requests_per_device_hour_at_slo"].means
    assert (at_slo <= hourly * (1 + 1e-12)).all()
    assert at_slo.tolist() == pytest.approx(hourly.tolist(), rel=0.25)


def test_without_stamps_nothing_is_split() -> None:
    found = _money(run_of([request(0, 2.0), request(2, 4.0, index=1)]))
    assert _means(found)["cost_per_million_output_tokens"] == pytest.approx(0.001 * 2 / 5 * 1e6)
    assert {row.charged for row in found.rows if row.metric.startswith("cost")} == {WHOLE}


def test_twice_the_speed_at_twice_the_price_is_no_cheaper() -> None:
    run = simulate_run(Design(blocks=20, requests=40, ratio=0.5, launch_spread=0.01))
    found = _money(run, prices=Prices("", per_hour={"baseline": 1.0, "engine": 2.0}))
    speed = next(c for c in analyse([run]).report.comparisons if c.metric == "e2e_seconds")
    (cost,) = [c for c in found.comparisons if c.primary]
    assert (cost.metric, cost.verdict) == ("cost_per_thousand_requests", "equivalent")
    assert (cost.ratio, cost.ci_low, cost.ci_high) == pytest.approx(
        (2 * speed.ratio, 2 * speed.ci_low, 2 * speed.ci_high)
    )


def test_requests_an_hour_are_more_where_costs_are_cheaper() -> None:
    found = _money(simulate_run(Design(ratio=0.8)))
    assert {c.metric: c.verdict for c in found.comparisons} == {
        "cost_per_thousand_requests": "cheaper",
        "cost_per_million_output_tokens": "cheaper",
        "cost_per_million_input_tokens": "cheaper",
        "requests_per_device_hour": "more",
    }


def test_the_interval_of_a_cost_ratio_covers_the_truth() -> None:
    prices, truth = Prices("", per_hour={"baseline": 1.0, "engine": 3.0}), 3.0 * 0.7
    covered = 0
    for seed in range(120):
        (cost,) = [
            c
            for c in _money(
                simulate_run(Design(ratio=0.7, requests=4, launch_spread=0.05), seed=seed), prices=prices
            ).comparisons
            if c.primary
        ]
        covered += cost.ci_low < truth < cost.ci_high
    # 95 % of 120, give or take three standard errors; all of them would mean that the intervals are too wide.
    assert 107 <= covered < 120


def test_goodput_and_energy_are_priced_where_they_were_measured() -> None:
    analysis = analyse([simulate_run()])
    (group,) = analysis.groups
    blocks = [(0, block) for block in range(10)]
    for metric, value in (("joules_per_token", 0.5), ("goodput_requests_per_second", 2.0)):
        values = np.full(10, value)
        group.means["engine", Cell(50, 16), metric] = LaunchMeans(
            blocks, values, np.ones(10, np.int64), np.full(10, 10), values
        )
    costs = _means(money(analysis, Prices("", everything=1.0, electricity_per_kwh=0.30), Options()), "engine")
    # Half a joule a token is 500 kJ a million, 0.1389 kWh.
    assert costs["energy_cost_per_million_output_tokens"] == pytest.approx(0.5e6 / 3.6e6 * 0.30)
    assert costs["requests_per_device_hour_at_slo"] == pytest.approx(7200)


def test_energy_that_was_not_measured_is_absent_with_the_reason() -> None:
    sensors = {"rapl": {"absent": "no permission to read energy_uj"}, "nvml": {"absent": "no driver"}}
    run = run_of([request(0, 2, 1)], environment={"sensors": sensors})
    found = _money(run, prices=Prices("", everything=1.0, electricity_per_kwh=0.30))
    assert "energy_cost_per_million_output_tokens" not in _means(found)
    assert (
        "simulated: no cost of energy: energy was not measured (rapl: no permission to read energy_uj; nvml: no driver)"
        in found.absent
    )


def test_loading_times_have_no_cost() -> None:
    found = _money(run_of([], kind="load"))
    assert (found.rows, found.absent) == ([], ["simulated: measures no requests, so nothing has a cost"])


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("2.49/h", 2.49, ""),
        ("$2.49/hour", 2.49, "$"),
        ("EUR 1.10/h", 1.1, "EUR"),
        (" 3 CHF / h", 3.0, "CHF"),
        (".5€/h", 0.5, "€"),
    ],
)
def test_amounts_are_read_with_their_currency(text: str, amount: float, currency: str) -> None:
    assert parse_amount_per_hour(text, "--price") == (amount, currency)


@pytest.mark.parametrize("text", ["2.49", "2.49/day", "h", "-1/h", "0/h", "$ 1 EUR/h", "1,5/h", "2.49/h extra"])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--price: expected an amount"):
        read_prices(text)


def test_demand_is_read_per_second() -> None:
    assert [parse_demand(text) for text in ("12/s", "90/min", "7200/h")] == [12.0, 1.5, 2.0]
    with pytest.raises(UsageError, match=r"--demand: expected requests per time like 12/s, .*, got '12'"):
        parse_demand("12")
    with pytest.raises(UsageError, match="got '0/s'"):
        parse_demand("0/s")


def _file(folder: Path, text: str) -> str:
    path = folder / "prices.toml"
    path.write_text(text)
    return str(path)


def test_a_label_goes_before_the_hardware_and_that_before_the_device(tmp_path: Path) -> None:
    prices = read_prices(
        _file(tmp_path, 'currency = "EUR"\n[per_hour]\ncpu = 1\n"simulated" = 2\nspecial = 3\ncuda = 4\n"NVIDIA X" = 5')
    )
    run = run_of(
        [],
        engines=("special", "plain", "graphics"),
        devices={"graphics": "cuda"},
        environment={"gpu": "NVIDIA X"},
    )
    assert [prices.of(engine, run.manifest) for engine in run.manifest.engines] == [3, 2, 5]
    run.manifest.environment.clear()
    assert [prices.of(engine, run.manifest) for engine in run.manifest.engines] == [3, 1, 4]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("currancy = 'EUR'\n[per_hour]\ncpu = 1", "unknown key 'currancy'; did you mean 'currency'"),
        ("currency = 'EUR'", "expected a .per_hour. table with at least one price, got None"),
        ("[per_hour]\ncpu = 'much'", "expected per_hour.cpu to be a number above zero, got 'much'"),
        ("[per_hour]\ncpu = 0", "per_hour.cpu to be a number above zero, got 0"),
        ("electricity_per_kwh = true\n[per_hour]\ncpu = 1", "electricity_per_kwh to be a number above zero, got True"),
        ("currency = 3\n[per_hour]\ncpu = 1", 'expected currency = "EUR" or the like, got 3'),
        ("per_hour = 3", "expected a .per_hour. table"),
        ("[per_hour", "not TOML"),
    ],
)
def test_a_price_file_with_something_wrong_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        read_prices(_file(tmp_path, text))


def test_a_misspelt_engine_is_refused_and_another_machine_of_a_price_list_is_not(tmp_path: Path) -> None:
    run = simulate_run()
    with pytest.raises(UsageError, match=r"unknown name 'engin' in \[per_hour\]; did you mean 'engine'"):
        _money(run, prices=read_prices(_file(tmp_path, "[per_hour]\ncpu = 1\nengin = 2")))
    found = _money(run, prices=read_prices(_file(tmp_path, '[per_hour]\ncpu = 1\n"NVIDIA H200" = 4')))
    assert {row.price_per_hour for row in found.rows} == {1.0}


def test_an_engine_without_a_price_is_an_error_that_names_what_the_file_knows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="for 'baseline' or 'simulated' or 'cpu', got none; the file knows: cuda"):
        _money(simulate_run(), prices=read_prices(_file(tmp_path, "[per_hour]\ncuda = 1")))


def test_a_price_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"prices .*nowhere\.toml: No such file"):
        read_prices(str(tmp_path / "nowhere.toml"))
