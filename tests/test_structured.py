"""Output under a JSON Schema: what is refused, what is asked for, what is recorded, and what it costs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import CommandLine, command_line
from helpers import only_run, read_samples

from enginecmp.errors import UsageError
from enginecmp.scenarios import load_scenario
from enginecmp.scenarios.decoding import DecodingRule
from enginecmp.scenarios.json_schema import follows_schema, schema_problems
from enginecmp.types import ModelInfo

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
STRUCTURED = """
name = "structured"
primary_metric = "tpot_seconds"
[decodings.json]
json_schema = "schema.json"
[[cells]]
prompt_tokens = 8
output_tokens = 30
decoding = "json"
[[cells]]
prompt_tokens = 8
output_tokens = 30
[profile.full]
blocks = 3
requests = 4
[validity]
floor_seconds = 1000
late_dispatch_seconds = 1000
late_dispatch_share = 1e9
"""


def write(folder: Path, text: str = STRUCTURED, schema: str = json.dumps(SCHEMA)) -> Path:
    (folder / "schema.json").write_text(schema)
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ('{"ok": true}', True),
        (' {"ok":false}\n', True),
        ('{"ok": 1}', False),
        ('{"ok": true, "more": 1}', False),
        ('{"ok": true', False),
        ('{"ok": true} and so on', False),
        ("NaN", False),
        ("", False),
        ("[" * 100_000, False),
    ],
)
def test_a_text_follows_a_schema_or_does_not(text: str, follows: bool) -> None:
    assert follows_schema(text, json.dumps(SCHEMA)) is follows


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "objct"}, "a JSON Schema (json-schema.org) in json_schema"),
        ({"$ref": "https://example.org/schema.json"}, "json_schema that refers to itself alone"),
        ({"enum": ["x" * 70_000]}, "json_schema of at most 65536 characters"),
    ],
)
def test_what_is_no_schema_is_told(schema: dict[str, Any], expected: str) -> None:
    (problem,) = [problem for problem, _ in schema_problems(schema)]
    assert problem.startswith(expected)
    assert not list(schema_problems(SCHEMA))


@pytest.mark.parametrize(
    ("change", "schema", "expected"),
    [
        (("", ""), "{", "expected a JSON Schema in"),
        (("", ""), "[1]", "a JSON object, got [1]"),
        (("", ""), '{"type": 5}', "expected decodings.json: a JSON Schema"),
        (('"schema.json"', '"none.json"'), "{}", "none.json"),
        (("output_tokens = 30", "output_tokens = 30\nconcurrency = 2"), "", "json_schema in cells with one user alone"),
        (("requests = 4", "requests = 4\nseconds = 2"), "", "requests and no seconds where requests may end early"),
    ],
)
def test_a_schema_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, change: tuple[str, str], schema: str, expected: str
) -> None:
    path = write(tmp_path, STRUCTURED.replace(*change, 1), schema or json.dumps(SCHEMA))
    with pytest.raises(UsageError) as raised:
        load_scenario(str(path), None)
    assert expected in str(raised.value)


def test_a_schema_needs_an_engine_that_follows_it_and_ends() -> None:
    rule = DecodingRule(json_schema=SCHEMA)
    assert rule.needs == {"json_schema", "end_of_sequence"}
    assert rule.may_end
    assert json.loads(rule.decoding(1, (2,)).json_schema) == SCHEMA


def test_an_engine_that_cannot_is_left_out_in_one_line(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo) -> None:
    write(tmp_path)
    done = cmp("run", "--scenario", tmp_path / "mine.toml", "--model", tiny.path, "--no-gate", "--engines", "fake")
    assert done.returncode != 0
    assert "fake: fake does not offer output under a JSON Schema here, which the scenario asks for" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def structured(tmp_path_factory: pytest.TempPathFactory, tiny: ModelInfo) -> Path:
    """A run of llama.cpp with and without the schema, through the option of `cmp run`."""
    if importlib.util.find_spec("llama_cpp") is None or importlib.util.find_spec("enginecmp_llamacpp") is None:
        pytest.skip("no engine llamacpp here: make setup")
    folder = tmp_path_factory.mktemp("structured")
    free = STRUCTURED.replace('[decodings.json]\njson_schema = "schema.json"\n', "").replace('decoding = "json"\n', "")
    write(folder, free.rpartition("[[cells]]")[0] + free[free.index("[profile.full]") :])
    done = command_line(folder)(
        "run", "--scenario", "mine.toml", "--model", tiny.path, "--no-gate", "--no-sensors", "--seed", "3",
        "--engines", "llamacpp", "--threads", "1", "--json-schema", "schema.json", "--temperature", "1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return only_run(folder / "results")


def test_every_answer_under_the_schema_ends_and_follows_it(structured: Path) -> None:
    samples = [sample for sample in read_samples(structured) if sample.phase == "measure"]
    under = [sample for sample in samples if sample.cell.decoding == "sampled+json"]
    free = [sample for sample in samples if sample.cell.decoding == "sampled"]
    assert len(under) == len(free) == 3 * 4
    assert [(s.status, s.flags, s.metrics["valid_json_share"]) for s in under] == [("ok", [], 1.0)] * 12
    assert all(sample.output_tokens < 30 for sample in under)
    assert all(sample.output_tokens == 30 and "valid_json_share" not in sample.metrics for sample in free)


def test_the_schema_s_cost_is_told_within_the_engine(structured: Path, cmp: CommandLine) -> None:
    found = msgspec.json.decode(cmp("stats", structured, "--json").stdout)
    told = [finding for finding in found["findings"] if finding["topic"] == "structured output"]
    assert told[0]["text"] == "12 of 12 answers end and follow the JSON Schema"
    assert [finding["text"].partition(":")[0] for finding in told[1:]] == [
        "time per token with the JSON Schema",
        "time to first token with the JSON Schema",
    ]
    means = {(s["cell"]["decoding"], s["metric"]): s["mean"] for s in found["summaries"] if s["cell"]}
    assert means["sampled+json", "valid_json_share"] == 1
    assert ("sampled", "valid_json_share") not in means
    assert all(finding["n_launches"] == 3 and finding["value"] > 0 for finding in told)
