"""The engine computes the model's distribution; llama.cpp is the outside oracle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unchanged

from enginecmp import ModelInfo

pytestmark = unchanged.left_out_with("plugins/mistralrs")

Run = Callable[..., Any]
Tiny = Callable[..., ModelInfo]

EXACT = 1e-8
"""Mean KL in nats under which two float32 engines count as computing the same."""

TEXT = "The end of the river, and the boats"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_float32_rows_are_llama_cpps(scores: Run, tiny: Tiny, kl: Run, architecture: str) -> None:
    found, ids = scores("scores", model=tiny(architecture), text=TEXT)
    wanted, _ = scores("oracle_scores", model=tiny(architecture), token_ids=ids)
    assert len(ids) >= 16
    assert found.shape == wanted.shape == (len(ids), 314)
    assert found.dtype == np.float32
    assert kl(wanted, found).mean() < EXACT
    np.testing.assert_allclose(np.exp(found.astype(np.float64)).sum(axis=1), 1.0, atol=1e-4)


@pytest.mark.parametrize(
    "text", ["  {{ 1 }} {% x %} <b>&amp;\\n\n\n ", " the", "\n", "{# the #}", "the <|endoftext|> end"]
)
def test_a_prompt_reaches_the_model_untouched_by_the_chat_template(scores: Run, tiny: Tiny, kl: Run, text: str) -> None:
    found, ids = scores("scores", model=tiny(), text=text)
    wanted, _ = scores("oracle_scores", model=tiny(), token_ids=ids)
    assert kl(wanted, found).max() < EXACT


def test_exact_numerics_differ_from_the_default_cache_type(scores: Run, tiny: Tiny, kl: Run) -> None:
    exact, ids = scores("scores", model=tiny(), text=TEXT, numerics="exact")
    default, _ = scores("scores", model=tiny(), token_ids=ids, numerics="default")
    chosen, _ = scores("scores", model=tiny(), token_ids=ids, numerics="default", extra={"kv": "f32"})
    assert np.array_equal(chosen, exact)
    # mistral.rs keeps float16 keys and values where the CPU converts them in hardware: near, not equal.
    if not {"avx2", "fma", "f16c"} <= set(Path("/proc/cpuinfo").read_text().split()):
        pytest.skip("this CPU has no AVX2, FMA and F16C: the engine keeps float32 keys and values")
    assert 1e-12 < kl(exact, default).mean() < 1e-4


def test_activation_type_is_the_users_choice_except_when_exact(scores: Run, tiny: Tiny, kl: Run) -> None:
    exact, ids = scores("scores", model=tiny(), text=TEXT, numerics="exact")
    rounded, _ = scores("scores", model=tiny(), token_ids=ids, numerics="default", extra={"dtype": "bf16"})
    forced, _ = scores("scores", model=tiny(), token_ids=ids, numerics="exact", extra={"dtype": "bf16"})
    assert kl(exact, rounded).mean() > 1e-5
    assert np.array_equal(forced, exact)


@pytest.mark.parametrize("tokens", [("Ġof", "Ġ", "Ġ", "r"), ("t", "Ã", "©", "s")])
def test_a_prefix_that_is_no_text_is_scored_all_the_same(
    scores: Run, tiny: Tiny, kl: Run, ids_of: Run, tokens: tuple[str, ...]
) -> None:
    # Two spaces would read back as one token, and the first byte of é as nothing at all.
    ids = ids_of(*tokens)
    found, _ = scores("scores", model=tiny(), token_ids=ids)
    wanted, _ = scores("oracle_scores", model=tiny(), token_ids=ids)
    assert kl(wanted, found).max() < EXACT


def test_tokens_that_no_set_of_biases_can_force_are_refused(scenario: Run, tiny: Tiny, ids_of: Run) -> None:
    # The three bytes of €: after the first, random weights do not prefer the second to the first again.
    kind, message = scenario("refused_score", model=tiny(), token_ids=ids_of("t", "â", "Ĥ", "¬", "s"))
    assert kind == "RoundTripError"
    assert "the prefix that ends at position 2 is neither a text that reads back nor reachable" in message


def test_a_prompt_that_opens_with_part_of_a_character_cannot_be_scored(scenario: Run, tiny: Tiny, ids_of: Run) -> None:
    kind, message = scenario("refused_score", model=tiny(), token_ids=ids_of("Ã", "©"))
    assert kind == "RoundTripError"
    assert "this prompt of 1 tokens" in message


def test_scoring_more_than_the_context_is_refused(scenario: Run, tiny: Tiny, prompt: list[int]) -> None:
    kind, message = scenario("refused_score", model=tiny(), token_ids=prompt, context_tokens=11)
    assert kind == "ContextOverflow"
    assert "the context holds 11" in message


@pytest.mark.model
def test_float32_rows_of_the_real_model_are_llama_cpps(scores: Run, kl: Run) -> None:
    from enginecmp.models.store import resolve

    model = resolve("smollm2-135m-instruct:f32", fetch=True)
    # Several prefixes of this are no text by themselves: "\n\n" before a word is two tokens, ○ and ≠ are bytes.
    text = "The river had frozen early.\n\n\nThe ferry ○ lay idle ≠ against the bank."
    found, ids = scores("scores", model=model, text=text)
    wanted, _ = scores("oracle_scores", model=model, token_ids=ids)
    assert len(ids) >= 16
    assert kl(wanted, found).mean() < EXACT
