"""Traces with lengths: each format read, hostile ones refused, and replayed alike for every engine."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from conftest import FAKE_MODULE, command_line
from helpers import only_run, read_samples

import enginecmp.scenarios
from enginecmp.errors import UsageError
from enginecmp.format.records import Asked
from enginecmp.scenarios import Scenario, load_scenario
from enginecmp.scenarios.traces import Trace, TraceFile, read_trace_file
from enginecmp.types import ModelInfo

SAMPLES = Path(enginecmp.scenarios.__file__).parent / "samples"

MOONCAKE = """{"timestamp": 2000, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]}
{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 4]}

{"timestamp": 500, "input_length": 10, "output_length": 0, "hash_ids": [5]}
"""
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,40,9,49,API log\n45,x,3.0,8,11,y\n"
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
SHAREGPT = json.dumps(
    [
        {"id": "a", "conversations": [
            {"from": "system", "value": "1234"}, {"from": "human", "value": "12345678"},
            {"from": "gpt", "value": "12345"}, {"from": "human", "value": "é" * 6}, {"from": "gpt", "value": "1"},
            {"from": "human", "value": "never answered"}]},
        {"id": "b", "conversations": [{"from": "gpt", "value": "an answer to nothing"}]},
    ]
)  # fmt: skip


def read(folder: Path, text: str, **how: float) -> Trace:
    (folder / "trace").write_text(text)
    return read_trace_file(msgspec.convert({"file": "trace", **how}, TraceFile), folder)


def test_each_format_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, MOONCAKE)
    assert (found.format, found.seconds, found.prompt_tokens, found.output_tokens) == (
        "mooncake", (0.0, 2.0), (600, 1100), (3, 5)
    )  # fmt: skip
    assert found.blocks == ((7, 4), (7, 8, 9))
    assert found.left_out == 1
    found = read(tmp_path, BURSTGPT, speed=2)
    assert (found.format, found.seconds, found.prompt_tokens, found.output_tokens) == (
        "burstgpt", (0.0, 20.0), (40, 3), (9, 8)
    )  # fmt: skip
    found = read(tmp_path, "\ufeff" + AZURE, token_scale=0.1)
    assert (found.format, found.prompt_tokens, found.output_tokens) == ("azure", (37, 40), (4, 11))
    assert found.seconds == (0.0, pytest.approx(4.314579, abs=1e-5))
    found = read(tmp_path, SHAREGPT)
    assert (found.format, found.seconds, found.turns) == ("sharegpt", (), (2,))
    assert (found.prompt_tokens, found.output_tokens) == ((3, 3), (2, 1))
    assert found.most_prompt_tokens == 3 + 2 + 3


def test_what_is_too_long_is_left_out_with_what_follows_it(tmp_path: Path) -> None:
    found = read(tmp_path, SHAREGPT, most_prompt_tokens=7)
    assert (found.turns, found.left_out) == ((1,), 1)
    with pytest.raises(UsageError, match="got none \\(2 left out\\)"):
        read(tmp_path, AZURE, most_output_tokens=1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected the keys of Mooncake"),
        ("a,b\n1,2\n", "expected the keys of Mooncake (JSON lines), ShareGPT (JSON), BurstGPT or Azure (CSV)"),
        ('{"timestamp": 1}', "line 1: expected input_length"),
        (MOONCAKE + "{", "line 5: expected an object of Mooncake's format"),
        (MOONCAKE.replace("1100", "1e300"), "line 1: expected input_length, a number of tokens"),
        (MOONCAKE.replace("1100", "-1"), "line 1: expected input_length, a number of tokens, got -1"),
        (MOONCAKE.replace("2000", "true"), "line 1: expected timestamp"),
        (MOONCAKE.replace("[7, 4]", '"x"'), "line 2: expected hash_ids"),
        ('{"timestamp":' + "[" * 100_000, "nested too deep"),
        ("[" * 100_000, "expected a list of conversations"),
        ('[{"conversations": [{"from": "human"}]}]', "conversation 1: expected conversations"),
        (BURSTGPT.replace("45", "nan"), "line 3: expected Timestamp, a time, got 'nan'"),
        (BURSTGPT.replace("3.0", "3.5"), "line 3: expected Request tokens, a number of tokens"),
        (BURSTGPT.replace("45,x,3.0,8,11,y", "45,x,3"), "expected Response tokens, a number of tokens, got "),
        (AZURE.replace("2023-11-16 18:15:50", "yesterday"), "line 3: expected TIMESTAMP, a date and time"),
        (AZURE + '"', "not CSV: unexpected end of data"),
        ("[]", "got none (0 left out)"),
        ("[{\n" + '"a": 1,' * 5, "as ShareGPT"),
    ],
)  # fmt: skip
def test_a_trace_that_is_none_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, text)
    assert expected in str(raised.value)
    assert len(str(raised.value)) < 600


def test_what_is_no_file_or_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="regular file"):
        read_trace_file(TraceFile(file="pipe"), tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        read_trace_file(TraceFile(file="nothing"), tmp_path)
    monkeypatch.setattr("enginecmp.scenarios.traces.MOST_REQUESTS", 1)
    for text in (MOONCAKE, AZURE, SHAREGPT):
        with pytest.raises(UsageError, match="expected at most 1 requests"):
            read(tmp_path, text)
    with pytest.raises(UsageError, match="expected speed"):
        read(tmp_path, AZURE, speed=0)


def test_the_samples_that_ship_are_of_every_format() -> None:
    formats = {read_trace_file(TraceFile(file=path.name), SAMPLES).format for path in SAMPLES.iterdir()}
    assert formats == {"mooncake", "burstgpt", "azure", "sharegpt"}


REPLAY = """
name = "replay"
primary_metric = "e2e_seconds"
[workloads.m.trace]
file = "m"
token_scale = 0.015625
speed = 100
[workloads.s.trace]
file = "s"
[[cells]]
workload = "m"
concurrency = 4
arrival = "trace"
[[cells]]
workload = "s"
[profile.full]
blocks = 2
requests = 3
warmup_requests = 1
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


def test_a_trace_is_replayed_with_its_times_lengths_and_blocks(tmp_path: Path, tiny: ModelInfo) -> None:
    (tmp_path / "m").write_text("".join(
        json.dumps({"timestamp": 1000 * number, "input_length": 1100 + number, "output_length": 64 * (1 + number),
                    "hash_ids": [1, 2, 10 + number]}) + "\n"
        for number in range(6)
    ))  # fmt: skip
    (tmp_path / "s").write_text(SHAREGPT)
    (tmp_path / "replay.toml").write_text(REPLAY)
    scenario = load_scenario(str(tmp_path / "replay.toml"), None)
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario
    real = [part for label in "ab" for part in ("-o", f"{label}.clock=real")]
    done = command_line(tmp_path)(
        "run", "--scenario", "replay.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "3",
        "--engines", "a=fake,b=fake", "-o", "a.prefix_cache=1", *real, env={"CMP_PLUGINS": FAKE_MODULE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    launches = defaultdict(list)
    for sample in read_samples(only_run(tmp_path / "results")):
        if sample.asked is not msgspec.UNSET:
            assert isinstance(sample.asked, Asked)
            assert sample.status == "ok"
            launches[sample.launch, sample.cell.workload].append(sample)
    for block, first in ((0, 0), (1, 4)):
        for engine in "ab":
            replayed = launches[f"b{block}-{engine}", "m"]
            assert [s.output_tokens for s in replayed] == [1 + (first + number) % 6 for number in range(4)]
            assert {s.prompt_tokens for s in replayed} == {17}
            # Ten milliseconds between two, and the mean gap from the end of the trace to its beginning.
            gaps = [round((after.intended_ns - before.intended_ns) / 1e6) for before, after in pairwise(replayed)]
            assert gaps == [10, 10, 10]
            assert [s.asked.known_tokens for s in replayed if isinstance(s.asked, Asked)] == [0, 16, 16, 16]
            talk = launches[f"b{block}-{engine}", "s"]
            assert [(s.phase, s.prompt_tokens, s.output_tokens) for s in talk] == [
                ("warmup", 3, 2), ("measure", 3, 2), ("measure", 8, 1), ("measure", 3, 2)
            ]  # fmt: skip
