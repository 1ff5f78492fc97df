"""The forecast of a run: what earlier runs tell, else a first guess from sizes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from enginecmp.launch.engine_config import EngineConfig
from enginecmp.measure.operand_sizes import operand_values
from enginecmp.plugins.plugin import Plugin
from enginecmp.run import guess
from enginecmp.run.estimate import expected_seconds, left_seconds
from enginecmp.scenarios.loader import load_scenario
from enginecmp.scenarios.plan import plan_launches
from enginecmp.types import LoadOptions, ModelInfo


def test_a_forecast_of_operations_holds_what_is_made_before_the_first_sample(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load_scenario("layer", "quick")
    values = [operand_values(scenario, cell, tiny) for cell in scenario.cells]
    # Weights of a layer of 5120 width with 8 of 40 heads for keys and 8192 between, inputs and cache apart.
    matrices = 5120 * (2 * 5120 + 2 * 1024 + 3 * 8192)
    assert values == [matrices + 2 * 5120 + 5120 + 2 * 512 * 1024, matrices + 2 * 5120 + 16 * 5120]
    seconds = []
    for rate in (1e6, 2e6):
        monkeypatch.setattr(guess, "values_per_second", lambda rate=rate: rate)
        seconds.append(expected_seconds(scenario, tiny, [EngineConfig("a", fake, LoadOptions())], tmp_path)[0])
    assert seconds[0] - seconds[1] == pytest.approx(scenario.blocks * 2 * sum(values) * (1 / 1e6 - 1 / 2e6))


def test_the_rate_of_making_operands_is_measured() -> None:
    assert 1e5 < guess.values_per_second() < 1e11


def test_what_is_left_of_a_run_is_its_share_of_the_whole(fake: Plugin, tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = msgspec.structs.replace(load_scenario("load", "quick"), blocks=4)
    configs = [EngineConfig(label, fake, LoadOptions()) for label in "ab"]
    plan = plan_launches("ab", 4, 1, len(scenario.cells))
    whole, basis = expected_seconds(scenario, tiny, configs, tmp_path)
    assert left_seconds(scenario, tiny, configs, tmp_path, plan) == (pytest.approx(whole), basis)
    some = [planned for planned in plan if planned.block == 3]
    assert left_seconds(scenario, tiny, configs, tmp_path, some)[0] == pytest.approx(whole / 4)


def test_only_a_sweep_that_is_not_calibrated_yet_is_guessed_at_several_rates(
    fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    config = EngineConfig("a", fake, LoadOptions())
    scenario = msgspec.structs.replace(load_scenario("single", "quick"), blocks=1)
    request = [guess.request_seconds(scenario, tiny, cell)[0] for cell in scenario.cells]
    requests = scenario.requests + scenario.warmup_requests
    expected = 3 + requests * sum(request)
    assert expected_seconds(scenario, tiny, [config], tmp_path)[0] == pytest.approx(expected)
    sweep = msgspec.structs.replace(scenario, offered_load=(0.5, 1.0, 1.5))
    assert expected_seconds(sweep, tiny, [config], tmp_path)[0] > expected


@pytest.mark.parametrize(
    ("table", "between"),
    [
        ("[workloads.w]\nprompt_tokens = 4\noutput_tokens = 2\nturns = 4\nthink_seconds = 30.0", 22.5),
        ("[workloads.w]\ntrace = { file = 'came.csv' }", 60.0),
    ],
    ids=["users who think", "recorded arrivals"],
)
def test_a_forecast_holds_the_time_in_which_nobody_asks(
    table: str, between: float, fake: Plugin, tiny: ModelInfo, tmp_path: Path
) -> None:
    (tmp_path / "came.csv").write_text("Timestamp,Request tokens,Response tokens\n0,4,2\n20,4,2\n120,4,2\n")
    arrival = "" if "think" in table else "\nconcurrency = 8\narrival = 'trace'"
    (tmp_path / "s.toml").write_text(
        "name = 's'\nprimary_metric = 'e2e_seconds'\n"
        f"{table}\n[[cells]]\nworkload = 'w'{arrival}\n[profile.full]\nblocks = 1\nrequests = 5\nwarmup_requests = 1\n"
    )
    scenario = load_scenario(str(tmp_path / "s.toml"), "full")
    request = guess.request_seconds(scenario, tiny, scenario.cells[0])[0]
    waited = between + (request if "think" in table else 0)
    found = expected_seconds(scenario, tiny, [EngineConfig("a", fake, LoadOptions())], tmp_path)[0]
    assert found == pytest.approx(3 + request + 5 * waited)


def test_a_later_turn_is_guessed_with_all_that_was_said_before_it(tiny: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        "name = 's'\nprimary_metric = 'e2e_seconds'\n"
        "[workloads.w]\nprompt_tokens = 10\noutput_tokens = 4\nturns = 3\nshared_prefix_tokens = 100\n"
        "[workloads.t]\ntrace = { file = 'said.json' }\n"
        "[[cells]]\nworkload = 'w'\n[[cells]]\nworkload = 't'\n[profile.full]\nblocks = 1\nrequests = 5\n"
    )
    talk = [{"from": who, "value": "word " * n} for who, n in [("human", 8), ("gpt", 4), ("human", 8), ("gpt", 2)]]
    (tmp_path / "said.json").write_text(json.dumps([{"conversations": talk}]))
    scenario = load_scenario(str(tmp_path / "s.toml"), "full")
    drawn, recorded = (workload for cell in scenario.cells if (workload := scenario.workload(cell)))
    assert drawn.mean_tokens == (100 + (10 + 24 + 38) / 3, 4)
    assert recorded.trace
    first, answer, second, last = (
        *recorded.trace.prompt_tokens[:1],
        *recorded.trace.output_tokens[:1],
        *(recorded.trace.prompt_tokens[1:]),
        *recorded.trace.output_tokens[1:],
    )
    assert recorded.mean_tokens == ((first + first + answer + second) / 2, (answer + last) / 2)
