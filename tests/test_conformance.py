"""Every engine that this repository ships passes the conformance suite, run as its users run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FAKE_MODULE

SUITE = [sys.executable, "-m", "pytest", "--pyargs", "enginecmp.testing", "-q", "-p", "no:cacheprovider", "-rs"]


def run_suite(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SUITE, *arguments],
        cwd=folder,
        env={**os.environ, "CMP_PLUGINS": FAKE_MODULE},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("engine", ["fake", "pytorch_baseline", "llamacpp", "mistralrs"])
def test_an_engine_of_ours_conforms(engine: str, tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--engine", engine)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 16, done.stdout


@pytest.mark.parametrize(
    ("fault", "caught_by"),
    [
        ("short=2", "test_a_request_gives_exactly_the_tokens_asked_for"),
        ("long=1", "test_a_request_gives_exactly_the_tokens_asked_for"),
        ("nan=2", "test_logits_have_one_finite_row_per_position"),
        ("fault=crash@decode", "test_stamps_rise_inside_the_request"),
        ("wrong=tokenize", "test_text_becomes_the_reference_tokenizers_ids"),
        ("wrong=sampling", "test_draws_follow_the_distribution_that_is_left"),
        ("wrong=matmul", "test_products_are_those_of_float64"),
    ],
)
def test_the_suite_fails_an_engine_that_misbehaves(fault: str, caught_by: str, tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--engine", "fake", "--engine-option", fault, "-k", caught_by)
    assert done.returncode == 1, done.stdout
    assert caught_by in done.stdout


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--engine", "lamacpp", "-x")
    assert done.returncode == 1
    assert "did you mean 'llamacpp'" in done.stdout
