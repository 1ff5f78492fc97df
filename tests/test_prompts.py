"""Prompts have exactly the asked length, are the same for everyone, and read back as the same ids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from enginecmp.errors import UsageError
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.info import describe
from enginecmp.models.store import DEFAULT_MODEL, resolve
from enginecmp.models.synth import write_synth
from enginecmp.models.tokenizer import load_tokenizer
from enginecmp.prompts import PromptSet, corpus
from enginecmp.types import ModelInfo


@pytest.fixture(scope="module")
def prompts(tiny: ModelInfo) -> PromptSet:
    return PromptSet(tiny)


@pytest.mark.parametrize("length", [1, 2, 10, 50, 200, 512])
def test_window_has_exactly_the_asked_length_and_reads_back(length: int, tiny: ModelInfo, prompts: PromptSet) -> None:
    tokenizer = load_tokenizer(tiny.path)
    for key in range(20):
        window = prompts.take(length, key=key, seed=1)
        assert len(window) == length
        assert tokenizer.encode(tokenizer.decode(window)) == list(window)


def test_consecutive_keys_give_different_windows(prompts: PromptSet) -> None:
    assert len({prompts.take(200, key=key, seed=1) for key in range(100)}) == 100


def test_another_seed_gives_another_window(prompts: PromptSet) -> None:
    assert prompts.take(50, key=0, seed=1) != prompts.take(50, key=0, seed=2)


def test_key_of_any_size_is_taken(prompts: PromptSet) -> None:
    assert len(prompts.take(50, key=2**63 - 1, seed=1)) == 50


def test_another_process_cuts_the_same_window(tiny: ModelInfo, prompts: PromptSet) -> None:
    """No Python hash, no clock and no folder order may decide."""
    code = (
        "import sys; from enginecmp.models.info import describe; from enginecmp.prompts import PromptSet;"
        "print(PromptSet(describe(sys.argv[1])).take(50, key=7, seed=3))"
    )
    answer = subprocess.run([sys.executable, "-c", code, tiny.path], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == str(prompts.take(50, key=7, seed=3))


def test_windows_are_cut_from_the_bundled_texts(tiny: ModelInfo, prompts: PromptSet) -> None:
    text = load_tokenizer(tiny.path).decode(prompts.take(200, key=4, seed=0))
    assert text in "\n\n".join(corpus().values())


def test_prompt_longer_than_the_context_is_refused_with_both_numbers(prompts: PromptSet) -> None:
    with pytest.raises(UsageError, match="context holds 512 tokens, got a prompt of 513"):
        prompts.take(513, key=0, seed=0)


def test_prompt_longer_than_the_texts_is_refused(tiny: ModelInfo) -> None:
    roomy = ModelInfo(**{name: getattr(tiny, name) for name in tiny.__struct_fields__} | {"context_tokens": 10**9})
    with pytest.raises(UsageError, match="bundled texts have"):
        PromptSet(roomy).take(10**8, key=0, seed=0)


@pytest.mark.parametrize("length", [0, -3])
def test_empty_prompt_is_refused(length: int, prompts: PromptSet) -> None:
    with pytest.raises(UsageError, match="at least 1 tokens"):
        prompts.take(length, key=0, seed=0)


def test_scored_window_is_fixed_and_holds_english_and_code(tiny: ModelInfo, prompts: PromptSet) -> None:
    first = prompts.score_ids(64)
    assert first == prompts.score_ids(64)
    assert len(first) == 64
    text = load_tokenizer(tiny.path).decode(first)
    english, code = corpus()["01-english-bread.txt"], corpus()["02-code-python-timetable.txt"]
    assert text[:12] in english
    assert text[-12:] in code


def test_every_beginning_of_the_scored_window_reads_back(tiny: ModelInfo, prompts: PromptSet) -> None:
    """A text-only engine is scored beginning by beginning."""
    tokenizer = load_tokenizer(tiny.path)
    window = list(prompts.score_ids(64))
    for end in range(1, 65):
        assert tokenizer.encode(tokenizer.decode(window[:end])) == window[:end]


def test_model_that_wants_a_begin_token_gets_it_first_and_the_length_stays(tmp_path: Path) -> None:
    write_synth(tmp_path / "plain.gguf", "tiny-llama")
    content = (tmp_path / "plain.gguf").read_bytes()
    start, end = read_gguf(tmp_path / "plain.gguf").spans["tokenizer.ggml.add_bos_token"]
    (tmp_path / "bos.gguf").write_bytes(content[: end - 1] + b"\x01" + content[end:])  # the BOOL's only byte
    model = describe(tmp_path / "bos.gguf")
    window = PromptSet(model).take(20, key=0, seed=0)
    assert len(window) == 20
    assert window[0] == model.vocabulary - 1  # <|endoftext|>, which the tiny vocabulary also begins with
    assert start < end


def test_code_texts_are_valid_python_where_they_say_so() -> None:
    compile(corpus()["02-code-python-timetable.txt"], "timetable.py", "exec")


@pytest.mark.model
def test_texts_are_long_enough_for_8k_prompts_of_the_embedded_model() -> None:
    model = resolve(DEFAULT_MODEL, fetch=True)
    prompts = PromptSet(model)
    assert prompts.tokens >= 12_000
    assert len(prompts.take(8192, key=0, seed=0)) == 8192
    assert len({prompts.take(200, key=key, seed=1) for key in range(100)}) == 100
