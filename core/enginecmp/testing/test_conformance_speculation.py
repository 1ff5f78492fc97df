"""Guessing ahead must change no token: for engines with the options `draft` (a GGUF file) or `lookup` (a number)."""

from __future__ import annotations

import pytest

from enginecmp.launch.launch import LaunchFailure
from enginecmp.testing.conftest import Prompts, Subject
from enginecmp.testing.test_conformance import generate
from enginecmp.testing.test_conformance_batching import batched, require_as_likely
from enginecmp.types import NO_ID

TOKENS = 24


@pytest.mark.parametrize("option", ["lookup", "draft"])
def test_guesses_change_no_token(option: str, subject: Subject, prompts: Prompts) -> None:
    # The model itself is the draft that guesses best; words said twice are what a lookup finds.
    extra = {**subject.options.extra, option: subject.model.path if option == "draft" else "2"}
    asked = [*prompts, prompts[1] * 3]
    with subject.launched() as launch:
        plain = [generate(launch, prompt, TOKENS)["ids"] for prompt in asked]
        if NO_ID in plain[0]:
            pytest.skip("the engine hands out text, not ids")
        try:
            with subject.launched(extra=extra) as guessing:
                for prompt, wanted in zip(asked, plain, strict=True):
                    answer = generate(guessing, prompt, TOKENS)
                    require_as_likely(launch, prompt, answer["ids"], wanted)
                    assert answer["metrics"]["tokens_per_step"] >= 1
                    assert 0 <= answer["metrics"].get("draft_acceptance_rate", 0) <= 1
        except LaunchFailure as failure:
            if failure.kind != "UnknownOption":
                raise
            pytest.skip(f"the engine has no option {option}")


@pytest.mark.parametrize("option", ["lookup", "draft"])
def test_guesses_change_no_token_of_a_batch(option: str, subject: Subject, prompts: Prompts) -> None:
    extra = {**subject.options.extra, option: subject.model.path if option == "draft" else "2"}
    several = [*prompts, *prompts[::-1]]
    with subject.launched(max_sequences=3) as launch:
        plain = batched(launch, several)
        try:
            with subject.launched(max_sequences=3, extra=extra) as guessing:
                found = batched(guessing, several, every=2)
        except LaunchFailure as failure:
            if failure.kind != "UnknownOption":
                raise
            pytest.skip(f"the engine has no option {option}")
        for prompt, ids, wanted in zip(several, found, plain, strict=True):
            require_as_likely(launch, prompt, ids, wanted)
