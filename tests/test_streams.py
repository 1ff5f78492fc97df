"""Standard streams that are closed or full, and text that would act on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import FAKE_MODULE, CommandLine

from enginecmp.format.text import plain, to_json, visible
from enginecmp.types import ModelInfo

VERBS = ["engines", "doctor", "model list", "plugin list", "run --engines fake --dry-run --model {model}", "--help"]


def shell(tmp_path: Path, tiny: ModelInfo, line: str) -> subprocess.CompletedProcess[str]:
    command = os.path.join(os.path.dirname(sys.executable), "cmp")
    return subprocess.run(
        ["bash", "-c", f"{command} {line.replace('{model}', tiny.path)}"],
        cwd=tmp_path,
        env={**os.environ, "CMP_PLUGINS": FAKE_MODULE, "ENGINECMP_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("where", "reason"), [("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(
    tmp_path: Path, tiny: ModelInfo, verb: str, where: str, reason: str
) -> None:
    done = shell(tmp_path, tiny, f"{verb} {where}")
    told = [line for line in done.stderr.splitlines() if line.startswith("cmp:")]
    assert done.returncode == 1
    assert told == [f"cmp: standard output: {reason}; nothing else is wrong, but the output is not complete"]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, tiny: ModelInfo) -> None:
    done = shell(tmp_path, tiny, "--help | true; echo ${PIPESTATUS[0]}")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_errors_keep_their_exit_code_where_nobody_can_read_them(tmp_path: Path, tiny: ModelInfo) -> None:
    assert shell(tmp_path, tiny, "stats nowhere 2> /dev/full").returncode == 1
    assert shell(tmp_path, tiny, "stats --nonsense 2>&-").returncode == 2


def test_a_run_needs_no_standard_streams(tmp_path: Path, tiny: ModelInfo) -> None:
    # A worker's socket must not take the number of a closed stream.
    (tmp_path / "mini.toml").write_text(
        'name = "mini"\nprimary_metric = "e2e_seconds"\n[[cells]]\nprompt_tokens = 8\noutput_tokens = 4\n'
        "[profile.full]\nblocks = 1\nrequests = 2\n[validity]\nfloor_seconds = 1000\n"
    )
    line = "run --engines fake --no-gate --no-sensors --scenario ./mini.toml --model {model}"
    done = shell(tmp_path, tiny, f"{line} <&- >&- 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (samples,) = tmp_path.glob("results/*/samples.jsonl")
    assert samples.read_text().count('"phase":"measure"') == 2


def test_what_would_act_on_a_terminal_is_written_out() -> None:
    assert visible("a  b\x1b]0;x\x07\ncmp: forged\u202e\x85") == r"a  b\x1b]0;x\x07\ncmp: forged\u202e\x85"
    assert visible("Zeit µs ±3 % 中") == "Zeit µs ±3 % 中"
    assert visible("x" * 9000) == "x" * 7999 + "…"
    assert plain("a\n b\x1b") == r"a b\x1b"


def test_json_holds_no_control_character_and_can_always_be_read() -> None:
    document = {"path": "b\udcff", "n": float("nan"), "list": [("\udc80", 1)]}
    assert msgspec.json.decode(to_json(document)) == {"path": "b\\udcff", "n": None, "list": [["\\udc80", 1]]}


def test_words_of_an_engine_do_not_reach_the_terminal(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cmp_test_evil.py").write_text(
        "import msgspec\n"
        "from enginecmp import hookimpl\n"
        "from enginecmp.testing import fake_engine as fake\n"
        "from enginecmp.testing.fake_engine import *\n"
        "@hookimpl\n"
        "def cmp_engine():\n"
        "    return msgspec.structs.replace(fake.cmp_engine(), name='evil', licence='\\x1b[31m[red]\\u202e')\n"
    )
    environment = {"CMP_PLUGINS": "cmp_test_evil", "PYTHONPATH": str(tmp_path), "COLUMNS": "300"}
    table, document = cmp("engines", env=environment), cmp("engines", "--json", env=environment)
    for done in (table, document):
        assert not {c for c in done.stdout + done.stderr if not c.isprintable()} - {"\n"}
    assert r"\x1b[31m[red]\u202e" in table.stdout
    assert msgspec.json.decode(document.stdout)["engines"]
