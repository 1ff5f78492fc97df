"""`cmp model` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [os.path.join(os.path.dirname(sys.executable), "cmp"), "model", *arguments],
            cwd=tmp_path,
            env={**os.environ, "ENGINECMP_CACHE": str(tmp_path / "cache"), "COLUMNS": "120", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_synth_info_quantize_list_work_on_one_file(call: Call, tmp_path: Path) -> None:
    made = call("synth", "--like", "tiny-llama", "--quant", "f32", "--seed", "4", "-o", "mine.gguf")
    assert made.returncode == 0, made.stderr
    facts = json.loads(call("info", "mine.gguf", "--json").stdout)
    assert facts["sha256"] in made.stdout
    assert {key: facts[key] for key in ("layers", "heads", "kv_heads", "head_dim", "context_tokens")} == {
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 16,
        "context_tokens": 512,
    }
    assert facts["kv_bytes_per_token"] == 256
    assert sum(facts["quantization_histogram"].values()) == facts["parameters"]

    derived = call("quantize", "mine.gguf", "q8_0")
    assert derived.returncode == 0, derived.stderr
    assert derived.stdout.startswith("mine:q8_0  Q8_0  ")
    listed = json.loads(call("list", "--json").stdout)
    rows = {row["name"]: row["status"] for row in listed["models"]}
    assert rows["mine:q8_0"] == "cached"
    assert rows["smollm2-135m-instruct:q4_1"] == "to fetch"
    assert rows["smollm2-135m-instruct:q8_0"] == "to derive"
    assert json.loads(call("info", "mine:q8_0", "--json").stdout)["quantization"] == "Q8_0"


def test_quantize_writes_where_it_is_told_and_leaves_the_cache_alone(call: Call, tmp_path: Path) -> None:
    call("synth", "--like", "tiny-gpt2", "-o", "mine.gguf")
    done = call("quantize", "mine.gguf", "F16", "-o", "half.gguf")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["half.gguf", "mine.gguf"]
    assert not list((tmp_path / "cache").glob("*.gguf"))


def test_info_for_people_names_hash_shape_and_kv_cache(call: Call) -> None:
    call("synth", "--like", "tiny-phi3", "-o", "mine.gguf")
    lines = dict(line.split("  ", 1) for line in call("info", "mine.gguf").stdout.splitlines())
    values = {name.strip(): value.strip() for name, value in lines.items()}
    assert values["heads"] == "4 query, 2 key/value, 16 wide"
    assert values["KV cache"] == "256 bytes per token (F16)"
    assert len(values["sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (("info", "absent.gguf"), 1, "No such file"),
        (("info", "smolm2-135m-instruct"), 2, "did you mean 'smollm2-135m-instruct'"),
        (("info", "smollm2-135m-instruct"), 1, "run 'cmp model pull smollm2-135m-instruct'"),
        (("synth", "--like", "tiny-lama", "-o", "x.gguf"), 2, "did you mean 'tiny-llama'"),
        (("pull", "x.gguf", "--sha256", "12"), 2, "64 hexadecimal digits"),
        (("pull", "http://127.0.0.1:9/readme.txt"), 2, "ends in a file name"),
        (("quantize", "absent.gguf", "q8_0"), 1, "No such file"),
    ],
)
def test_errors_are_one_line_with_the_right_exit_code(
    arguments: tuple[str, ...], code: int, fault: str, call: Call, tmp_path: Path
) -> None:
    done = call(*arguments)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert fault in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("*.gguf"))
