"""Every engine that this repository ships passes the conformance suite, run as its users run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import unchanged
from conftest import FAKE_MODULE

from enginecmp.plugin_tools import new as scaffold

pytestmark = unchanged.left_out_with("plugins/pytorch_baseline", "plugins/llamacpp", "plugins/mistralrs")

SUITE = [sys.executable, "-m", "pytest", "--pyargs", "enginecmp.testing", "-q", "-p", "no:cacheprovider", "-rs"]


TEMPLATE = Path(scaffold.__file__).parent / "template" / "enginecmp_my_engine.py"


def run_suite(folder: Path, *arguments: str, module: str = FAKE_MODULE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SUITE, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "CMP_PLUGINS": module},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("engine", ["fake", "pytorch_baseline", "llamacpp", "mistralrs"])
def test_an_engine_of_ours_conforms(engine: str, tmp_path: Path) -> None:
    # What the host makes of wrong answers is the same for all that import Python: one fake and one real engine show it.
    part = [] if engine in ("fake", "llamacpp") else ["-k", "not conformance_hostile"]
    done = run_suite(tmp_path, "--engine", engine, *part)
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
        ("lax=1", "test_an_id_outside_the_vocabulary_is_refused_and_the_engine_lives_on"),
        ("lax=1", "test_an_empty_prompt_is_refused_and_the_engine_lives_on"),
        ("lax=1", "test_a_request_may_fill_the_context_and_no_more"),
        ("lax=1", "test_a_prompt_to_score_may_fill_the_context_and_no_more"),
        ("sticky=1", "test_reset_leaves_nothing_of_the_last_request"),
        ("wrong=tokenize", "test_text_becomes_the_reference_tokenizers_ids"),
        ("wrong=sampling", "test_draws_follow_the_distribution_that_is_left"),
        ("wrong=sampling", "test_sampled_ids_follow_the_softmax_of_the_engine_s_own_logits"),
        ("wrong=matmul", "test_products_are_those_of_float64"),
        ("wrong=elementwise", "test_functions_of_elements_are_those_of_float64"),
        ("wrong=layer", "test_a_layer_is_that_of_float64"),
        ("short=1", "test_every_position_is_committed_once_in_as_many_steps_as_were_asked_for"),
        ("long=1", "test_every_position_is_committed_once_in_as_many_steps_as_were_asked_for"),
    ],
)
def test_the_suite_fails_an_engine_that_misbehaves(fault: str, caught_by: str, tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--engine", "fake", "--engine-option", fault, "-k", caught_by)
    assert done.returncode == 1, done.stdout
    assert caught_by in done.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "caught_by"),
    [
        (" / np.sqrt(np.float32(self.width))", "", "test_every_position_has_the_distribution_of_float64"),
        ("int(session.forward([session.last]", "int(-session.forward([session.last]", "most_likely_tokens_of_float64"),
        ("file.float32(name) for", "1.2 * file.float32(name) for", "test_weights_of_every_type_are_the_numbers"),
        ("!= self.width:", "< 0:", "test_what_a_file_asks_for_is_computed_or_refused"),
        ("self.require_tensors(keys)", "pass", "test_a_broken_file_is_refused_and_the_next_one_loads"),
        ("0 <= min(token_ids)", "-9 <= min(token_ids)", "test_an_id_outside_the_vocabulary_is_refused"),
    ],
)
def test_the_suite_fails_an_engine_that_computes_something_else(
    right: str, wrong: str, caught_by: str, tmp_path: Path
) -> None:
    text = TEMPLATE.read_text()
    assert text.count(right) == 1
    (tmp_path / TEMPLATE.name).write_text(text.replace(right, wrong))
    done = run_suite(tmp_path, "--engine", "my_engine", "-k", caught_by, module=TEMPLATE.stem)
    assert done.returncode == 1, done.stdout
    assert caught_by in done.stdout


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--engine", "lamacpp", "-x")
    assert done.returncode == 1
    assert "did you mean 'llamacpp'" in done.stdout
