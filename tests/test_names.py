"""Hyphens and underscores mean the same in every name on the command line; what is unknown is refused at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CommandLine
from helpers import ONE_CELL

from enginecmp.errors import UsageError, meant
from enginecmp.plugins.plugin import Plugin
from enginecmp.run.selection import check_options, parse_devices, parse_engines, parse_options
from enginecmp.scenarios import load_scenario
from enginecmp.types import EngineInfo, ModelInfo
from enginecmp_analysis.data.metrics import find_metric
from enginecmp_analysis.decisions.slo import parse_objectives


def plugin(name: str, *option_names: str) -> Plugin:
    info = EngineInfo(
        name=name,
        version="1",
        licence="MIT",
        devices=("cpu",),
        architectures=("llama",),
        quantizations=("F32",),
        option_names=option_names,
    )
    return Plugin(name=name, module=name, info=info)


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("long-context", ["long_context", "load"], "long_context"),
        ("smollm2_135m_instruct", ["smollm2-135m-instruct"], "smollm2-135m-instruct"),
        ("a-b_c", ["a_b-c"], "a_b-c"),
        ("a-b", ["a_b", "a-b"], "a-b"),
        ("a-b-c", ["a_b-c", "a-b_c"], "a-b-c"),
        ("ab", ["a_b"], "ab"),
    ],
)
def test_a_name_is_the_known_one_that_reads_the_same(name: str, known: list[str], found: str) -> None:
    assert meant(name, known) == found


def test_scenarios_metrics_and_objectives_take_either() -> None:
    assert load_scenario("long-context", "quick") == load_scenario("long_context", "quick")
    assert find_metric("throughput-tokens-per-second").name == "throughput_tokens_per_second"
    assert parse_objectives("ttft-seconds-p95<200ms,itl-seconds:p99=0.1") == parse_objectives(
        "ttft_seconds_p95<200ms,itl_seconds:p99=0.1"
    )


def test_engines_are_called_by_their_own_name_however_it_is_written() -> None:
    plugins = [plugin("custom_cuda", "prefill_chunk"), plugin("candle")]
    chosen = parse_engines("custom-cuda,my-label=custom-cuda", plugins)
    assert list(chosen) == ["custom_cuda", "my-label"]
    assert parse_devices("custom-cuda=emulated,my_label=cuda", chosen) == {
        "custom_cuda": "emulated",
        "my-label": "cuda",
    }
    given = parse_options(["custom-cuda.prefill-chunk=64", "my_label.prefill_chunk=8"], chosen)
    assert check_options(given, chosen) == {
        "custom_cuda": {"prefill_chunk": "64"},
        "my-label": {"prefill_chunk": "8"},
    }


def test_an_option_that_its_engine_does_not_know_is_refused_without_a_launch() -> None:
    chosen = {"a": plugin("custom_cuda", "prefill_chunk"), "b": plugin("quiet")}
    with pytest.raises(UsageError, match=r"-o a\.prefil_chunk: custom_cuda has no option 'prefil_chunk'; did you mean"):
        check_options({"a": {"prefil_chunk": "64"}}, chosen)
    # An engine that does not tell its options is asked when it loads.
    assert check_options({"b": {"anything": "1"}}, chosen) == {"b": {"anything": "1"}}


SCENARIO = f"""{ONE_CELL}[[expect]]
engine = "fake"
metric = "{{metric}}"
low = 1
[profile.full]
blocks = 1
requests = 1
"""


def test_what_is_misspelt_costs_nothing_and_is_told_once(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    scenario = tmp_path / "mini.toml"
    scenario.write_text(SCENARIO.format(metric="trhoughput_tokens_per_second"))
    line = ["run", "--scenario", str(scenario), "--model", tiny.path, "--engines", "fake"]
    claim = cmp(*line)
    assert claim.returncode == 2
    assert "[[expect]] of fake: unknown metric 'trhoughput_tokens_per_second'; did you mean 'through" in claim.stderr
    scenario.write_text(SCENARIO.format(metric="ratio"))
    option = cmp(*line, "-o", "fake.thraeds=4")
    assert option.returncode == 2
    assert option.stderr.count("thraeds") == 2, "the option as given, and in the sentence"
    assert "gate" not in option.stderr
    assert not (tmp_path / "results").exists()
    metric = cmp("stats", "nowhere", "--metric", "ttft-secnods")
    assert metric.returncode == 2
    assert "did you mean 'ttft_seconds'" in metric.stderr
    metric = cmp("compare", "nowhere", "nowhere", "--metric", "ttft-secnods")
    assert metric.returncode == 2
    assert "did you mean 'ttft_seconds'" in metric.stderr
