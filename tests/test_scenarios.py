from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from enginecmp.errors import UsageError
from enginecmp.format.records import Cell
from enginecmp.prompts.lengths import Exponential, Lognormal, Uniform
from enginecmp.run.drive import room_for
from enginecmp.scenarios import Scenario, available, load_scenario
from enginecmp.scenarios.fit import fit
from enginecmp.scenarios.loader import change_deadlines
from enginecmp.scenarios.ranges import _RANGES
from enginecmp.scenarios.workload import Workload, workload_problems
from enginecmp.types import LoadOptions, ModelInfo
from enginecmp.wire.deadlines import Deadlines

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


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize("profile", ["full", "quick"])
def test_shipped_scenarios_give_at_least_100_samples_a_cell(name: str, profile: str) -> None:
    scenario = load_scenario(name, profile)
    assert scenario.name == name
    assert scenario.description
    assert scenario.blocks >= 10
    # A launch loads once.
    assert scenario.requests == 1 if scenario.kind == "load" else scenario.requests >= 10
    assert scenario.warmup_requests >= 1


def test_single_has_prompts_of_10_50_and_200_tokens() -> None:
    assert [cell.prompt_tokens for cell in load_scenario("single", "full").cells] == [10, 50, 200]


def test_sustained_measures_each_engine_for_300_seconds() -> None:
    scenario = load_scenario("sustained", "full")
    assert scenario.seconds is not None
    assert scenario.blocks * scenario.seconds == 300


def test_sustained_keeps_one_and_32_requests_in_flight() -> None:
    assert [cell.concurrency for cell in load_scenario("sustained", "full").cells] == [1, 32]


def test_quick_sustained_is_mostly_decoding_and_gives_every_user_two_rounds() -> None:
    scenario = load_scenario("sustained", "quick")
    assert (scenario.blocks, scenario.requests) == (10, 10)
    assert all(scenario.requests >= 2 * cell.concurrency for cell in scenario.cells)
    # A prompt's token costs an eighth of an output token or so.
    assert all(cell.output_tokens >= 5 * cell.prompt_tokens / 8 for cell in scenario.cells)


def test_concurrent_has_the_numbers_of_users_and_every_kind_of_arrival() -> None:
    cells = load_scenario("concurrent", "full").cells
    assert [cell.concurrency for cell in cells if not cell.arrival] == [1, 10, 25, 50, 100]
    assert {cell.arrival for cell in cells if cell.arrival} == {"poisson", "constant", "gamma"}


def test_a_sweep_sets_rates_itself(tmp_path: Path) -> None:
    sweep = GOOD.replace('name = "mine"', 'name = "mine"\noffered_load = [0.5, 1.0]')
    assert load_scenario(write(tmp_path, sweep), "full").offered_load == (0.5, 1.0)
    fixed = sweep.replace("output_tokens = 4", 'output_tokens = 4\narrival = "poisson"\nrate_per_second = 2.0')
    with pytest.raises(UsageError, match="which sets rates itself"):
        load_scenario(write(tmp_path, fixed), "full")


def test_when_an_engine_is_offered_a_rate_is_a_matter_of_its_own_calibration() -> None:
    scenario = msgspec.structs.replace(load_scenario("saturation", "quick"), calibration={"a": 2.0, "dead": 0.0})
    slow, fast = Cell(8, 4, 8, "poisson", 3.01), Cell(8, 4, 8, "poisson", 3.1)
    assert [scenario.offered(cell, "a") for cell in (slow, fast)] == [True, False]
    assert scenario.offered(fast, "of an older run")
    assert not scenario.offered(slow, "dead")


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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("blocks = 2", "blocks = 1_000_000_000_000"), "expected blocks from 0 to 1e+06, got 1000000000000"),
        (("requests = 3", "requests = 9_223_372_036_854_775_807"), "expected requests from 0 to 1e+07, got 92233"),
        (("requests = 3", "requests = 3\nseconds = inf"), "expected seconds from 0 to 1e+07, got inf"),
        (("requests = 3", "requests = 3\nwarmup_requests = 10_000_000"), "at most 10000000 prompts in a cell"),
        (("requests = 3", "requests = 3\noutput_tokens = 2_000_000_000"), "at most 1073741824 output tokens in a cell"),
        (("output_tokens = 4", "output_tokens = 4\nconcurrency = 1_000_000"), "cells.concurrency from 1 to 65536"),
        (("output_tokens = 4", 'output_tokens = 4\narrival = "poisson"\nrate_per_second = nan'), "got nan"),
        (("output_tokens = 4", 'output_tokens = 4\narrival = "poisson"\nrate_per_second = 1e-320'), ">= 1e-06 in an"),
        (("output_tokens = 4", 'output_tokens = 4\nvariant = "\\u001b[2J"'), r"printable characters, got '\\x1b[2J'"),
        (('name = "mine"', 'name = ""'), "expected name: 1 to 200 printable characters, got ''"),
        (("[profile", "[deadlines]\ndecode_seconds = nan\n[profile"), "deadlines.decode_seconds from 0.001 to 1e+07"),
        (("[profile", "[deadlines]\nload_seconds = -1\n[profile"), "deadlines.load_seconds from 0.001 to 1e+07"),
        (("[profile", "[validity]\nfloor_seconds = -inf\n[profile"), "validity.floor_seconds from 0 to 1e+12"),
        (("[profile", "[goodput]\nttft_seconds = 0\n[profile"), "goodput.ttft_seconds from 1e-09 to 1e+07, got 0"),
        (("requests = 3", "requests = 3\ncells = 5"), "[profile.full]: expected cells as [[cells]] tables, got 5"),
        (("[[cells]]", "expect = 5\n[[cells]]"), "expected claims as [[expect]] tables, got 5"),
        (("[[cells]]", "operation = [5]\n[[cells]]"), "Expected `str`, got `array`"),
        (("[[cells]]", 'max_nll_increase = -1\n[[cells]]'), "expected max_nll_increase from 0 to 1e+06, got -1"),
    ],
)  # fmt: skip
def test_a_number_that_no_run_can_mean_is_refused(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as error:
        load_scenario(write(tmp_path, GOOD.replace(*change)), "full")
    assert expected in str(error.value)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "x", ""])
def test_a_deadline_is_a_number_of_seconds(seconds: str) -> None:
    with pytest.raises(UsageError, match=r"expected PHASE=SECONDS"):
        change_deadlines(Deadlines(), [f"load={seconds}"])


def test_without_a_profile_the_usual_one_is_taken_or_the_only_one(tmp_path: Path) -> None:
    def profile(*names: str) -> str:
        text = GOOD[GOOD.index("[profile.full]") :]
        own = "".join(text.replace("profile.full", f"profile.{name}") for name in names)
        return load_scenario(write(tmp_path, GOOD.replace(text, own)), None, usual_profile="quick").profile

    assert profile("full") == "full"
    assert profile("full", "quick") == "quick"
    with pytest.raises(UsageError, match=r"mine\.toml: has no profile 'quick'; choose: --profile full or long$"):
        profile("long", "full")


OPERATION = """
name = "mine"
primary_metric = "operation_seconds"
kind = "operation"
operation = "sampling"
cells = [{ prompt_tokens = 8, output_tokens = 0, variant = "hot" }]
[variants.hot]
temperature = 1.5
top_k = 4
[profile.full]
blocks = 2
requests = 3
"""


def test_a_scenario_of_an_operation_needs_engines_that_offer_it(tmp_path: Path) -> None:
    assert load_scenario(write(tmp_path, OPERATION), "full").needs == "sampling"
    assert load_scenario(write(tmp_path, GOOD), "full").needs == ""
    assert load_scenario("components", "full").needs == "profile"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("top_k", "topk"), "did you mean 'top_k'"),
        (("1.5", '"warm"'), "Expected `float`"),
        (("top_k = 4", "top_p = 1.5"), "<= 1"),
        (('operation = "sampling"', 'operation = "sample"'), "one of tokenize, sampling, matmul, elementwise, layer"),
        (('operation = "sampling"', ""), "an operation exactly where"),
        (("[variants.hot]", "[variants.cold]"), "a variant of cold in every cell, got 'hot'"),
        (('kind = "operation"\noperation = "sampling"', 'kind = "load"'), "launch_per_cell = true"),
    ],
)
def test_a_wrong_variant_names_the_right_one(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.toml") as error:
        load_scenario(write(tmp_path, OPERATION.replace(*change)), "full")
    assert expected in str(error.value)


LENGTHS = """
name = "mine"
primary_metric = "ttft_seconds"
cells = [
    { prompt_tokens = 60, output_tokens = 4 },
    { prompt_tokens = 61, output_tokens = 4, concurrency = 3, variant = "long" },
]
[profile.full]
blocks = 2
requests = 3
"""


def holds(tokens: int) -> ModelInfo:
    return ModelInfo(
        name="m", path="m.gguf", sha256="", architecture="llama", parameters=1, quantization="F32", bytes=4,
        context_tokens=tokens, vocabulary=8,
    )  # fmt: skip


def test_cells_that_the_model_cannot_hold_are_left_out_said_and_kept_with_the_reason(tmp_path: Path) -> None:
    said: list[str] = []
    scenario = fit(load_scenario(write(tmp_path, LENGTHS), "full"), holds(64), said.append)
    assert scenario.cells == (Cell(60, 4),)
    reason = "needs 65 tokens of context, m was made for 64"
    assert scenario.left_out == {"prompt 61, output 4, 3 at once, long": reason}
    assert said == [f"left out: prompt 61, output 4, 3 at once, long: {reason}"]


def test_nothing_is_left_out_where_everything_fits(tmp_path: Path) -> None:
    scenario = load_scenario(write(tmp_path, LENGTHS), "full")
    assert fit(scenario, holds(65), lambda line: pytest.fail(line)) == scenario


def test_a_scenario_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs 64 tokens of context, m was made for 63"):
        fit(load_scenario(write(tmp_path, LENGTHS), "full"), holds(63), print)


def test_a_launch_of_one_cell_has_room_for_that_cell_alone() -> None:
    options = LoadOptions(context_tokens=4096, max_sequences=8)
    assert room_for(Cell(60, 4, 2), 2, options) == LoadOptions(context_tokens=64, max_sequences=2)
    # An engine that takes one request at a time is given no more, however many wait.
    assert room_for(Cell(60, 4, 2), 2, LoadOptions(max_sequences=1)).max_sequences == 1


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


def _numbers(kind: inspect.Type, place: str) -> Iterator[str]:
    """Yield the place of every number in a type, as `ranges` names them."""
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        yield place
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from _numbers(field.type, f"{place}.{field.encode_name}".lstrip("."))
    elif isinstance(kind, inspect.DictType):
        yield from _numbers(kind.value_type, place)
    elif isinstance(kind, inspect.UnionType):
        for inner in kind.types:
            yield from _numbers(inner, place)
    elif isinstance(kind, inspect.ListType | inspect.VarTupleType):
        yield from _numbers(kind.item_type, place)


def test_every_number_of_a_scenario_has_a_range() -> None:
    places = set(_numbers(inspect.type_info(Scenario), ""))
    # A workload is held by rules of its own (below), as a decoding is, and a variant by its type.
    assert {place for place in places if not place.startswith(("workloads.", "decodings."))} == set(_RANGES)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1, 1 << 40])
def test_no_number_of_a_workload_may_be_absurd(wrong: float) -> None:
    fine = Workload(prompt_tokens=8, output_tokens=4)
    assert not list(workload_problems("w", fine))
    whole: dict[str, Any] = {} if not math.isfinite(wrong) else {"prompt_tokens": wrong, "output_tokens": wrong}
    if math.isfinite(wrong):
        whole |= {"turns": wrong, "shared_prefix_tokens": wrong, "shared_prefixes": wrong}
        whole |= {"turns ": Uniform(1, int(wrong)), "prompt_tokens ": Uniform(int(wrong), 8)}
    single = {"think_seconds": wrong, "shared_prefix_share": wrong, "think_seconds ": Exponential(wrong)}
    single |= {"output_tokens": Lognormal(wrong, 1.0, 8), "output_tokens ": Lognormal(4.0, wrong, 8)}
    for name, value in (whole | single).items():
        workload = msgspec.structs.replace(fine, **{name.strip(): value})
        assert list(workload_problems("w", workload)), (name, value)
