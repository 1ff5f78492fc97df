"""The command line as a stranger meets it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import CommandLine

from enginecmp.cli import VERBS, is_posix_call
from enginecmp.machine.environment import usable_cores
from enginecmp.types import ModelInfo


def test_help_names_every_verb(cmp: CommandLine) -> None:
    done = cmp("--help")
    assert done.returncode == 0
    for verb, line in VERBS.items():
        assert verb in done.stdout
        assert line in done.stdout


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help(cmp: CommandLine, verb: str) -> None:
    done = cmp(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: cmp {verb}")


def test_the_help_of_run_imports_nothing_that_drives_engines() -> None:
    code = (
        "import sys, enginecmp.cli.run; "
        "print([name for name in ('enginecmp.run.drive', 'enginecmp.launch.launch', 'psutil') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'?"),
        (["rnu", "--engines", "all"], "unknown command 'rnu'; did you mean 'run'?"),
        (["run", "--engines", "lamacpp"], "unknown engine 'lamacpp'; did you mean 'llamacpp'?"),
        (["run", "--scenario", "sustaned"], "unknown scenario 'sustaned'; did you mean 'sustained'?"),
        (["run", "--profile", "quik"], "unknown profile 'quik'; did you mean 'quick'?"),
        (["run", "--engines", "fake", "-o", "fake"], "expected ENGINE.KEY=VALUE"),
        (["run", "--engines", "fake", "-o", "fke.a=b"], "did you mean 'fake'"),
        (["run", "--engines", "fake,fake"], "'fake' twice"),
        (["run", "--engines", ","], "no engine named"),
        (["run", "--engines", "fake", "--baseline", "other"], "not in this run"),
        (["run", "--threads", "many"], "expected a number or 'auto'"),
        (["run", "--threads", "100000"], f"expected 1 to {usable_cores()}"),
        (["run", "--blocks", "0"], "expected a number of blocks like 12"),
        (["run", "--deadline", "lode=3"], "expected PHASE=SECONDS"),
        (["run", "--no-such-option"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    cmp: CommandLine, tiny: ModelInfo, tmp_path: Path, arguments: list[str], said: str
) -> None:
    if arguments[0] == "run":
        arguments = [*arguments, "--model", tiny.path]
    done = cmp(*arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_missing_model_is_one_line(cmp: CommandLine, tmp_path: Path) -> None:
    done = cmp("run", "--model", "none.gguf", "--engines", "fake")
    assert done.returncode in (1, 2)
    assert "none.gguf" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_corrupt_model_never_reaches_an_engine(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(Path(tiny.path).read_bytes()[:-1000])
    done = cmp("run", "--model", broken, "--engines", "fake")
    assert done.returncode == 1
    assert "broken.gguf" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_prompt_longer_than_the_context_is_refused_before_anything_is_written(
    cmp: CommandLine, tiny: ModelInfo, tmp_path: Path
) -> None:
    (tmp_path / "long.toml").write_text(
        'name = "long"\nprimary_metric = "ttft_seconds"\n[[cells]]\nprompt_tokens = 5000\noutput_tokens = 4\n'
        "[profile.full]\nblocks = 1\nrequests = 1\n"
    )
    done = cmp("run", "--scenario", "./long.toml", "--model", tiny.path, "--engines", "fake")
    assert done.returncode == 2
    assert "5004" in done.stderr
    assert str(tiny.context_tokens) in done.stderr
    assert not (tmp_path / "results").exists()


def test_an_unwritable_results_folder_is_one_line(cmp: CommandLine, tiny: ModelInfo, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    done = cmp("run", "--model", tiny.path, "--engines", "fake", "--no-gate", "--out", "taken")
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_engine_that_can_run_is_an_error_that_says_why(cmp: CommandLine, tiny: ModelInfo) -> None:
    done = cmp("run", "--model", tiny.path, "--engines", "all", "--device", "vulkan")
    assert done.returncode == 1
    assert "no engine can run" in done.stderr
    assert "not on vulkan" in done.stderr


def test_engines_are_listed_with_reason_and_fix(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cmp_test_wreck.py").write_text("import no_such_library_here")
    environment = {"CMP_PLUGINS": "enginecmp.testing.fake_engine,cmp_test_wreck", "PYTHONPATH": str(tmp_path)}
    done = cmp("engines", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in msgspec.json.decode(done.stdout)["engines"]}
    assert rows["fake"]["status"] == "available"
    assert rows["cmp_test_wreck"]["status"] == "broken"
    assert "no_such_library_here" in rows["cmp_test_wreck"]["reason"]
    assert {"pytorch_baseline", "llamacpp", "mistralrs"} <= set(rows)
    table = cmp("engines", env=environment)
    assert "broken" in table.stdout
    assert "no_such_library_here" in table.stdout


def test_a_probe_that_crashes_or_hangs_is_an_answer(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "cmp_test_bang.py").write_text(
        "import os, signal\n"
        "from enginecmp import EngineInfo, hookimpl\n"
        "@hookimpl\n"
        "def cmp_engine():\n"
        "    return EngineInfo(name='bang', version='1', licence='MIT', devices=('cpu',), architectures=('llama',),\n"
        "                      quantizations=('F32',))\n"
        "@hookimpl\n"
        "def cmp_probe(options):\n"
        "    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    done = cmp("engines", "--json", env={"CMP_PLUGINS": "cmp_test_bang", "PYTHONPATH": str(tmp_path)})
    rows = {row["name"]: row for row in msgspec.json.decode(done.stdout)["engines"]}
    assert rows["bang"]["status"] == "unavailable"
    assert "SIGSEGV in probe" in rows["bang"]["reason"]


# --- the POSIX tool of the same name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["a", "b"], ["-s", "a", "b"], ["-l", "a", "b"], ["a", "-"], ["nowhere", "b"], ["-i", "1", "a", "b"]]
)
def test_two_files_go_to_the_systems_cmp_unchanged(cmp: CommandLine, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a").write_text("same\nline\n")
    (tmp_path / "b").write_text("same\nlime\n")
    system = shutil.which("cmp", path="/usr/bin:/bin")
    if system is None:
        pytest.skip("this machine has no POSIX cmp")
    expected = subprocess.run(
        [system, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    got = cmp(*arguments)
    assert (got.returncode, got.stdout) == (expected.returncode, expected.stdout)
    assert got.stderr.replace(system, "cmp") == expected.stderr.replace(system, "cmp")


@pytest.mark.parametrize(
    ("arguments", "posix"),
    [
        ([], False),
        (["--help"], False),
        (["--version"], False),
        (["run", "x"], False),
        (["stats", "results"], False),
        (["stat", "results"], False),  # a slip of the finger, not two files
        (["one-file"], False),
        (["-s", "a", "b"], True),
        (["a.bin", "b.bin"], True),
        (["-", "b"], True),
    ],
)
def test_which_calls_are_meant_for_the_posix_tool(arguments: list[str], posix: bool) -> None:
    assert is_posix_call(arguments) is posix
