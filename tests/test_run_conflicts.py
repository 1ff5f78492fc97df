"""Options of `cmp run` that contradict each other are refused before anything happens; none is ignored in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CommandLine


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--resume R --blocks 3", "--resume: goes on with what the manifest says; leave --blocks out, or --resume"),
        ("--resume R --dry-run", "--resume: goes on with what the manifest says; leave --dry-run out, or --resume"),
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
            "--precision: is what --adaptive aims at, and that is not given; add it, or leave --precision out",
        ),
    ],
)
def test_a_contradiction_is_one_line_and_leaves_nothing(
    cmp: CommandLine, tmp_path: Path, options: str, says: str
) -> None:
    done = cmp("run", *options.split())
    assert (done.returncode, done.stderr) == (2, f"cmp: {says}\n")
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_not_there_makes_no_folder(cmp: CommandLine, tmp_path: Path) -> None:
    done = cmp("run", "--resume", "nowhere/run")
    assert (done.returncode, done.stderr) == (
        1,
        "cmp: nowhere/run: no manifest.json, so this is not a run's folder\n",
    )
    assert list(tmp_path.iterdir()) == []
