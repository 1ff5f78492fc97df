"""Wrong input to `cmp run` and `cmp stats` is one line with the next step, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from conftest import FAKE_MODULE, CommandLine
from helpers import only_run

from enginecmp.cli import _of_the_system
from enginecmp.errors import ResultsError
from enginecmp.format.readers import read_manifest
from enginecmp.run.request import read_again
from enginecmp.types import ModelInfo


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--resume R --blocks 3", "--resume: goes on with what the manifest says; leave --blocks out, or --resume"),
        ("--resume R --matrix a", "--resume: goes on with what the manifest says; leave --matrix out, or --resume"),
        ("--resume R -o a.b=c", "--resume: goes on with what the manifest says; leave -o out, or --resume"),
        (
            "--matrix a,b --model a",
            "--matrix: measures several files, and --model is about one run; leave --model out, or --matrix",
        ),
        (
            "--matrix a,b --save-baseline a",
            "--matrix: measures several files, and --save-baseline is about one run; "
            "leave --save-baseline out, or --matrix",
        ),
        (
            "--no-gate --max-kl 1",
            "--no-gate: skips the gate, and --max-kl is about it; leave --max-kl out, or --no-gate",
        ),
        (
            "--no-gate --quality-only",
            "--quality-only: is the gate without launches, and --no-gate asks for more or for less; "
            "leave --no-gate out, or --quality-only",
        ),
        (
            "--adaptive --quality-only",
            "--quality-only: is the gate without launches, and --adaptive asks for more or for less; "
            "leave --adaptive out, or --quality-only",
        ),
        (
            "--precision 1%",
            "--precision: is what is aimed at by --adaptive, which is not given; add it, or leave --precision out",
        ),
    ],
)
def test_a_contradiction_is_one_line_and_leaves_nothing(
    cmp: CommandLine, tmp_path: Path, options: str, says: str
) -> None:
    done = cmp("run", *options.split())
    assert (done.returncode, done.stderr) == (2, f"cmp: {says}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            "--history --price 2/h",
            "--history: follows a metric over runs and compares no engines; leave --price out, or --history",
        ),
        (
            "--detect 1%",
            "--detect: is the difference that must be found by the plan of --plan, which is not given; "
            "add it, or leave --detect out",
        ),
    ],
)
def test_statistics_that_would_ignore_an_option_are_refused(cmp: CommandLine, options: str, says: str) -> None:
    done = cmp("stats", *options.split())
    assert (done.returncode, done.stderr) == (2, f"cmp: {says}\n")


def test_resuming_what_is_not_there_makes_no_folder(cmp: CommandLine, tmp_path: Path) -> None:
    done = cmp("run", "--resume", "nowhere/run")
    assert (done.returncode, done.stderr) == (
        1,
        "cmp: nowhere/run: no manifest.json, so this is not a run's folder\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def interrupted(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo) -> Path:
    """The folder of a run of a file of the user's, as if it had been interrupted, relative to where `cmp` runs."""
    line = ["run", "--engines", "fake", "--model", tiny.path, "--profile", "quick", "--no-gate", "--no-sensors"]
    done = cmp(*line, "--blocks", "1", "--requests", "1")  # a busy machine disturbs its request: no result then
    assert done.returncode in (0, 1), done.stderr
    assert "1 block × 1 request," in done.stderr
    assert "and the gate" not in done.stderr
    run = only_run(tmp_path / "results")
    manifest = read_manifest(run)
    manifest.status = "interrupted"
    (run / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return run.relative_to(tmp_path)


def test_what_resuming_needs_is_named(cmp: CommandLine, tmp_path: Path, tiny: ModelInfo, interrupted: Path) -> None:
    def said(*arguments: str | Path) -> str:
        done = cmp("run", "--resume", *arguments)
        assert done.returncode == 1
        return done.stderr.removeprefix("cmp: ").rstrip()

    digest = tiny.sha256[:12]
    # A run of an earlier version does not know where its file was.
    (tmp_path / interrupted / "resume.json").unlink()
    assert said(interrupted) == (
        f"{interrupted}: was made with the file tiny-llama, SHA-256 {digest}…; name it with --model"
    )
    assert said("results") == f"results: is a folder of runs; name one of its 1, the latest is {interrupted}"
    path = interrupted / "manifest.json"
    assert said(path) == f"{path}: no manifest.json, so this is not a run's folder"
    manifest = read_manifest(tmp_path / interrupted)
    manifest.scenario["cells"] = "x"
    (tmp_path / path).write_bytes(msgspec.json.encode(manifest))
    assert said(interrupted) == f"{path}: scenario: Expected `array`, got `str` - at `$.cells`; start a new run"


def test_a_scenario_file_without_its_ending_and_a_file_in_place_of_results_are_named(
    cmp: CommandLine, tmp_path: Path, tiny: ModelInfo
) -> None:
    (tmp_path / "mine").write_text("")
    done = cmp("run", "--engines", "fake", "--scenario", "mine")
    assert done.stderr == "cmp: unknown scenario 'mine'; the path of a scenario's file ends in .toml\n"
    done = cmp("run", "--engines", "fake", "--model", tiny.path, "--no-gate", "--out", "mine")
    assert done.returncode == 1
    assert done.stderr == "cmp: results folder mine: cannot write: it is a file; choose another with --out\n"


def test_a_folder_that_is_no_plugin_and_a_name_that_is_no_run_are_named(cmp: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "pyproject.toml").write_text("[project]\n")
    wanted = "expected a pyproject.toml with [project.entry-points.enginecmp], got"
    assert cmp("plugin", "check", "./nowhere").stderr == f"cmp: nowhere: {wanted} no file that can be read\n"
    assert cmp("plugin", "check", "./bare").stderr == f"cmp: bare: {wanted} one without it\n"
    assert cmp("compare", "old", "new").stderr == (
        "cmp: 'old' is no path, and there is no saved baseline 'old' in results; "
        "save one with `cmp run --save-baseline NAME`\n"
    )


DEEP_TOML = "a = " + "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "too deep"])
@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("x.toml", "run --engines fake --no-gate --scenario x.toml"),
        ("x.toml", "tune fake --scenario x.toml --dry-run"),
        ("x.toml", "selftest --aa fake --scenario x.toml"),
        ("baselines.json", "compare old new --results ."),
        ("pyproject.toml", "plugin check ."),
        ("trace.csv", "run --engines fake --no-gate --scenario trace.toml"),
    ],
)
def test_no_file_that_is_asked_for_can_hang_or_flood_a_command(
    cmp: CommandLine, tmp_path: Path, name: str, line: str, kind: str
) -> None:
    (tmp_path / "trace.toml").write_text(
        'name = "t"\nprimary_metric = "e2e_seconds"\narrival = "trace"\ntrace = "trace.csv"\noffered_load = [0.5]\n'
        "[[cells]]\nprompt_tokens = 8\noutput_tokens = 4\nconcurrency = 2\n[profile.full]\nblocks = 1\nrequests = 2\n"
    )
    path = tmp_path / name
    match kind:
        case "a FIFO":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case _:
            path.write_text(DEEP_TOML if name.endswith(".toml") else "[" * 100_000)
    done = cmp(*line.split())
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1, done.stderr
    assert Path(name).name in done.stderr
    assert kind == "too deep" or f"expected a regular file, got {kind}" in done.stderr
    assert "internal error" not in done.stderr


def test_how_a_run_was_asked_for_is_read_from_a_regular_file_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "resume.json")
    with pytest.raises(ResultsError, match=r"resume\.json: expected a regular file, got a FIFO; remove it"):
        read_again(tmp_path)


@pytest.mark.parametrize("line", [["stats"], ["report"], ["plugin", "check"], ["run", "--resume"]])
def test_a_name_that_no_file_can_have_is_one_line(cmp: CommandLine, line: list[str]) -> None:
    done = cmp(*line, "x" * 5000)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cmp: {'x' * 80}…: File name too long; ")
    assert done.stderr.count("\n") == 1


def test_a_machine_on_which_no_file_can_be_written_is_one_line(tmp_path: Path, tiny: ModelInfo) -> None:
    arguments = ["run", "--engines", "fake", "--no-gate", "--model", tiny.path, "--out", str(tmp_path / "results")]
    done = subprocess.run(
        [os.path.join(os.path.dirname(sys.executable), "cmp"), *arguments],
        env={**os.environ, "CMP_PLUGINS": FAKE_MODULE},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cmp: ")
    assert "make room" in done.stderr
    assert "internal error" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_a_full_machine_says_is_no_internal_error() -> None:
    for error in (OSError(errno.ENOSPC, "No space left on device", "x"), OSError(errno.EROFS, "Read-only file system")):
        assert "make room, and try again" in _of_the_system(error)
    nowhere = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    assert _of_the_system(nowhere).endswith("make room there, or name another by TMPDIR")
    assert not _of_the_system(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))
