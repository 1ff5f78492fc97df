"""`cmp model` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import field
from enginecmp.models.quantize import quantize

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


def test_words_of_a_file_cannot_forge_a_line_or_reach_the_terminal(call: Call, tmp_path: Path) -> None:
    call("synth", "--like", "tiny-phi3", "-o", "mine.gguf")
    content = (tmp_path / "mine.gguf").read_bytes()
    span = slice(*read_gguf(tmp_path / "mine.gguf").spans["general.description"])
    words = "fine\nforged  line\x1b[2J\x1b]0;owned\x07\u202e"
    target = tmp_path / "a\nforged [red]\x1b.gguf"
    # Of the same length, so that the tensors stay where they are.
    room = span.stop - span.start - len(field("general.description", "STRING", words))
    (tmp_path / "words.gguf").write_bytes(
        content[: span.start] + field("general.description", "STRING", words + "." * room) + content[span.stop :]
    )
    quantize(tmp_path / "words.gguf", target, "f16")
    for arguments in (("info", str(target)), ("quantize", str(target), "q8_0"), ("list",)):
        done = call(*arguments)
        assert done.returncode == 0, done.stderr
        assert all(line.isprintable() for line in (done.stdout + done.stderr).split("\n"))
        assert not any(line.startswith("forged") for line in (done.stdout + done.stderr).split("\n"))
    assert "fine forged line\\x1b[2J\\x1b]0;owned\\x07\\u202e" in call("info", str(target)).stdout


def test_paths_that_are_no_utf8_or_no_file_to_write_are_refused(call: Call, tmp_path: Path) -> None:
    call("synth", "--like", "tiny-phi3", "-o", "mine.gguf")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.gguf").symlink_to("/dev/zero")
    for arguments, fault in (
        (("info", "b\udcff.gguf"), "expected a path in UTF-8"),
        (("quantize", "mine.gguf", "f16", "-o", "b\udcff.gguf"), "expected a path in UTF-8"),
        (("synth", "--like", "tiny-llama", "-o", "b\udcff.gguf"), "expected a path in UTF-8"),
        (("quantize", "mine.gguf", "f16", "-o", "pipe"), "got a folder, device or pipe"),
        (("info", "zero.gguf"), "got a device or pipe"),
        (("info", "./pipe"), "got a device or pipe"),
        (("info", "."), "got a folder"),
        (("info", "./"), "got a folder"),
    ):
        done = call(*arguments)
        assert fault in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == ["mine.gguf", "zero.gguf"]


@pytest.mark.parametrize(
    ("arguments", "code", "fault"),
    [
        (("info", "absent.gguf"), 1, "No such file"),
        (("info", "smolm2-135m-instruct"), 2, "did you mean 'smollm2-135m-instruct'"),
        (("info", "smollm2-135m-instruct"), 1, "run: cmp model pull smollm2-135m-instruct:q8_0"),
        (("synth", "--like", "tiny-lama", "-o", "x.gguf"), 2, "did you mean 'tiny-llama'"),
        (("pull", "x.gguf", "--sha256", "12"), 2, "64 hexadecimal digits"),
        (
            ("pull", "http://127.0.0.1:9/x.gguf"),
            2,
            "got a URL; fetch the file and name it: curl -LO http://127.0.0.1:9/x.gguf",
        ),
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
