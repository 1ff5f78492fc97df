from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from enginecmp.errors import UsageError
from enginecmp.scenarios import Scenario, available, load_scenario
from enginecmp.types import Cell

GOOD = """
name = "mine"
primary_metric = "ttft_seconds"
[[cells]]
prompt_tokens = 8
output_tokens = 4
[profile.full]
blocks = 2
requests = 3
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", ["single", "sustained"])
@pytest.mark.parametrize("profile", ["full", "quick"])
def test_shipped_scenarios_give_at_least_100_samples_a_cell(name: str, profile: str) -> None:
    scenario = load_scenario(name, profile)
    assert scenario.blocks >= 10
    assert scenario.requests >= 10
    assert scenario.warmup_requests >= 1


def test_single_has_prompts_of_10_50_and_200_tokens() -> None:
    assert [cell.prompt_tokens for cell in load_scenario("single", "full").cells] == [10, 50, 200]


def test_sustained_measures_each_engine_for_300_seconds() -> None:
    scenario = load_scenario("sustained", "full")
    assert scenario.seconds is not None
    assert scenario.blocks * scenario.seconds == 300


def test_quick_sustained_is_ten_blocks_of_ten_requests_of_16_tokens() -> None:
    scenario = load_scenario("sustained", "quick")
    assert (scenario.blocks, scenario.requests) == (10, 10)
    assert {cell.output_tokens for cell in scenario.cells} == {16}


def test_a_file_of_the_users_own_is_read(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, GOOD), "full")
    assert scenario.name == "mine"
    assert scenario.cells == (Cell(8, 4, 1),)
    assert scenario.context_tokens == 12


def test_a_resolved_scenario_survives_the_manifest(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, GOOD), "full")
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(scenario)), Scenario) == scenario


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("primary_metric", "primary_metrics"), "did you mean 'primary_metric'"),
        (("ttft_seconds", "ttft_second"), "did you mean 'ttft_seconds'"),
        (("prompt_tokens", "promt_tokens"), "did you mean 'prompt_tokens'"),
        (("blocks = 2", "blocks = 0"), "blocks >= 1, got 0"),
        (("requests = 3", "request = 3"), "did you mean 'requests'"),
        (("output_tokens = 4", "output_tokens = 0"), "output_tokens >= 1, got 0"),
        (("output_tokens = 4", 'output_tokens = "x"'), "Expected `int`"),
        (("[[cells]]", "[cells"), "not TOML"),
        (("[profile.full]", "[profile.quick]"), "unknown profile 'full'"),
        (("requests = 3", "requests = 3\nwarmup_requests = 0"), "warmup_requests >= 1"),
        (("requests = 3", "requests = 3\n[deadlines]\nload = 2"), "did you mean 'load_seconds'"),
    ],
)
def test_a_wrong_key_or_value_names_the_right_one(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as error:
        load_scenario(write(tmp_path, GOOD.replace(*change)), "full")
    assert expected in str(error.value)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'sustained'"):
        load_scenario("sustaned", "full")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_scenario(str(tmp_path / "none.toml"), "full")


def test_plugins_can_bring_scenarios(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert "mine" in available([path])
    assert load_scenario("mine", "full", [path]).name == "mine"
