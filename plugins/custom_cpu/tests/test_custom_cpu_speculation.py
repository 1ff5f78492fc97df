"""Speculation is lossless: the ids are those without it, whatever was guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from enginecmp import Decoding, EngineError, ModelInfo, Request, UnsupportedModel, read_gguf
from enginecmp.testing.tiny_models import TOKEN_IDS, changed_model
from enginecmp_custom_cpu import cmp_decode, cmp_decoding, cmp_metrics, cmp_prefill, cmp_reset, cmp_submit

Tiny = Callable[..., ModelInfo]
REPEATING = (*TOKEN_IDS[:7], *TOKEN_IDS[:7], *TOKEN_IDS[:7], 5)
PROMPTS = [REPEATING, TOKEN_IDS, TOKEN_IDS[:1], TOKEN_IDS[3:40]]
TOKENS = 60


def guessers(tiny: Tiny, architecture: str) -> list[dict[str, str]]:
    """Lookups, the model itself, which is always right, and another one, which is not."""
    return [
        {"lookup": "1"},
        {"lookup": "3", "draft_tokens": "7"},
        {"draft": tiny(architecture, "Q8_0").path},
        {"draft": tiny("qwen2", seed=5).path, "draft_tokens": "2"},
    ]


@pytest.mark.parametrize("guesser", range(4))
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_speculation_is_lossless(
    architecture: str, guesser: int, tiny: Tiny, load: Any, generate: Any, batch: Any
) -> None:
    model, extra = tiny(architecture, "Q8_0"), guessers(tiny, architecture)[guesser]
    plain = load(model, numerics="default")
    wanted = [generate(plain, prompt, TOKENS) for prompt in PROMPTS]
    session = load(model, numerics="default", max_sequences=3, extra=extra)
    assert [generate(session, prompt, TOKENS) for prompt in PROMPTS] == wanted
    for every in (0, 7):
        assert batch(session, PROMPTS, TOKENS, every) == wanted


@pytest.mark.parametrize("extra", [{"prefix_cache": "on"}, {"sliding_window": "12"}, {"prompt_chunk": "3"}])
@pytest.mark.parametrize("guesser", [0, 2, 3])
def test_speculation_is_lossless_with_other_options(
    guesser: int, extra: dict[str, str], tiny: Tiny, load: Any, generate: Any, batch: Any
) -> None:
    model = tiny("llama", "Q8_0")
    plain = load(model, numerics="default", extra=extra)
    wanted = [generate(plain, prompt, TOKENS) for prompt in PROMPTS]
    session = load(model, numerics="default", max_sequences=4, extra=extra | guessers(tiny, "llama")[guesser])
    for _ in range(2):
        assert [generate(session, prompt, TOKENS) for prompt in PROMPTS] == wanted
    assert batch(session, PROMPTS, TOKENS) == wanted


@pytest.mark.parametrize("guesser", range(4))
def test_speculation_is_lossless_up_to_the_last_place_of_the_context(
    guesser: int, tiny: Tiny, load: Any, generate: Any
) -> None:
    model = tiny("llama", "Q8_0")
    extra = guessers(tiny, "llama")[guesser]
    for context in (31, 32, 33, 64):
        wanted = generate(load(model, numerics="default"), REPEATING, context - len(REPEATING) + 1)
        session = load(model, numerics="default", context_tokens=context, extra=extra)
        assert generate(session, REPEATING, context - len(REPEATING) + 1) == wanted


@pytest.mark.parametrize("guesser", range(4))
def test_speculation_is_lossless_over_context_shifts(guesser: int, tiny: Tiny, load: Any, generate: Any) -> None:
    model, extra = tiny("llama", "Q8_0"), {"context_shift": "on", "kv_type": "f16"}
    plain = load(model, numerics="default", context_tokens=64, extra=extra)
    session = load(model, numerics="default", context_tokens=64, extra=extra | guessers(tiny, "llama")[guesser])
    assert generate(session, REPEATING, 200) == generate(plain, REPEATING, 200)


def test_a_draft_that_is_the_model_is_always_right(tiny: Tiny, load: Any, generate: Any) -> None:
    model = tiny("llama", "Q8_0")
    session = load(model, extra={"draft": model.path, "draft_tokens": "4"})
    generate(session, TOKEN_IDS, 51)
    metrics = cmp_metrics(session)
    assert metrics["draft_acceptance_rate"] == 1.0
    assert metrics["tokens_per_step"] == 5.0  # 50 after the first, in 10 passes
    assert metrics["weights_bytes"] > 1.9 * cmp_metrics(load(model))["weights_bytes"]


def test_metrics_are_of_the_last_request_and_absent_without_speculation(tiny: Tiny, load: Any, generate: Any) -> None:
    model = tiny("llama", "Q8_0")
    session = load(model, extra={"lookup": "2"})
    generate(session, REPEATING, 30)
    assert cmp_metrics(session)["tokens_per_step"] >= 1.0
    generate(session, TOKEN_IDS[:1], 2)
    found = cmp_metrics(session)
    assert found["tokens_per_step"] == 1.0
    assert "draft_acceptance_rate" not in found
    assert not {"tokens_per_step", "draft_acceptance_rate"} & set(cmp_metrics(load(model)))
    cmp_reset(session)
    assert "tokens_per_step" not in cmp_metrics(session)


def test_tokens_asked_for_one_by_one_are_the_same(tiny: Tiny, load: Any, generate: Any) -> None:
    model = tiny("llama", "Q8_0")
    session = load(model, extra={"draft": model.path})
    wanted = generate(session, TOKEN_IDS, 20)
    cmp_reset(session)
    # Told of one token only: nothing is guessed, and more may still be asked for.
    found = [cmp_prefill(session, TOKEN_IDS, 1)]
    for n_tokens in (1, 3, 15):
        found += cmp_decode(session, n_tokens)
    assert found == wanted


def test_a_draft_of_another_vocabulary_is_refused(tiny: Tiny, load: Any) -> None:
    model = tiny("llama")
    rows = {name: read_gguf(model.path).float32(name) for name in ("token_embd.weight", "output.weight")}
    other = changed_model(model, tensors={name: np.vstack((each, each[:10])) for name, each in rows.items()})
    count = model.vocabulary
    with pytest.raises(UnsupportedModel, match=f"a draft model of {count} token ids, got {count + 10}"):
        load(model, extra={"draft": other.path})


@pytest.mark.parametrize("guesser", [0, 2])
def test_guesses_are_greedy_alone(guesser: int, tiny: Tiny, load: Any) -> None:
    session = load(tiny("llama"), max_sequences=2, extra=guessers(tiny, "llama")[guesser])
    cmp_reset(session)
    with pytest.raises(EngineError, match="expected greedy decoding beside draft or lookup"):
        cmp_decoding(session, Decoding(temperature=1.0))
    request = Request(id="a", token_ids=TOKEN_IDS, output_tokens=3, decoding=Decoding(end_ids=(1,)))
    with pytest.raises(EngineError, match="expected greedy decoding beside draft or lookup"):
        cmp_submit(session, request)
    assert isinstance(cmp_prefill(session, TOKEN_IDS, 3), int)
