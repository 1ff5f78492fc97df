"""Guesses change no token: the ids are those without them, whatever was guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llamacpp_requests import one_by_one, requests_of, together

from enginecmp import (
    ContextOverflow,
    Decoding,
    EngineError,
    ModelError,
    ModelInfo,
    Request,
    UnsupportedModel,
    read_gguf,
)
from enginecmp.testing.tiny_models import changed_model
from enginecmp_llamacpp import cmp_decode, cmp_decoding, cmp_metrics, cmp_prefill, cmp_reset, cmp_submit

Tiny = Callable[[str, str], ModelInfo]


def guessers(tiny_model: Tiny) -> list[dict[str, str]]:
    """Lookups, the model itself, which is always right, and another one, which is not."""
    return [
        {"lookup": "1"},
        {"lookup": "3", "draft_tokens": "7"},
        {"draft": tiny_model("llama", "F32").path},
        {"draft": tiny_model("qwen2", "F32").path, "draft_tokens": "2"},
    ]


@pytest.mark.parametrize("guesser", range(4))
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_guesses_change_no_token(
    architecture: str, guesser: int, tiny_model: Tiny, load: Any, token_ids: list[int]
) -> None:
    model, extra = tiny_model(architecture, "F32"), guessers(tiny_model)[guesser]
    # The last one repeats itself, which is what a lookup finds.
    requests = [*requests_of(token_ids), *requests_of(token_ids[:4] * 8)[1:2]]
    requests[-1] = type(requests[-1])(id="last", token_ids=token_ids[:4] * 6, output_tokens=40)
    expected = one_by_one(load(model), requests)
    session = load(model, max_sequences=3, extra=extra)
    assert one_by_one(session, requests) == expected
    assert together(session, requests) == expected
    small = load(model, max_sequences=3, extra=extra | {"n_batch": "8"})
    assert together(small, requests) == expected


@pytest.mark.parametrize("guesser", range(4))
def test_guesses_stop_at_the_last_place_of_the_context(
    guesser: int, tiny_model: Tiny, load: Any, token_ids: list[int]
) -> None:
    model = tiny_model("llama", "F32")
    prompt = token_ids[:5] * 4
    session = load(model, context_tokens=32, extra=guessers(tiny_model)[guesser])
    plain = load(model, context_tokens=32)
    found = []
    for each in (session, plain):
        cmp_reset(each)
        found.append([cmp_prefill(each, prompt, 13), *cmp_decode(each, 12)])
    assert found[0] == found[1]
    with pytest.raises(ContextOverflow, match="holds 32"):
        next(iter(cmp_decode(session, 1)))


def test_a_draft_that_is_the_model_is_always_right(tiny_model: Tiny, load: Any, token_ids: list[int]) -> None:
    model = tiny_model("llama", "F32")
    session = load(model, extra={"draft": model.path})
    cmp_prefill(session, token_ids, 51)
    assert len(list(cmp_decode(session, 50))) == 50
    metrics = cmp_metrics(session)
    assert metrics["draft_acceptance_rate"] == 1.0
    assert metrics["tokens_per_step"] == 5.0  # 50 after the first, in 10 batches
    plain = load(model)
    cmp_prefill(plain, token_ids, 51)
    list(cmp_decode(plain, 50))
    assert metrics["weights_bytes"] == 2 * cmp_metrics(plain)["weights_bytes"]
    assert metrics["kv_cache_bytes"] == cmp_metrics(plain)["kv_cache_bytes"]
    assert "tokens_per_step" not in cmp_metrics(plain)
    cmp_reset(session)
    assert "tokens_per_step" not in cmp_metrics(session)


def test_tokens_asked_for_one_by_one_are_the_same(tiny_model: Tiny, load: Any, token_ids: list[int]) -> None:
    model = tiny_model("llama", "F32")
    session = load(model, extra={"lookup": "1"})
    wanted = [cmp_prefill(session, token_ids, 20), *cmp_decode(session, 19)]
    cmp_reset(session)
    found = [cmp_prefill(session, token_ids, 1)]
    for n_tokens in (1, 3, 15):
        found += cmp_decode(session, n_tokens)
    assert found == wanted


def test_wrong_use_is_refused(tiny_model: Tiny, load: Any, token_ids: list[int], tmp_path: Any) -> None:
    model = tiny_model("llama", "F32")
    session = load(model, extra={"lookup": "1"})
    with pytest.raises(EngineError, match="expected a prompt before decode"):
        next(iter(cmp_decode(session, 1)))
    cmp_prefill(session, token_ids, 2)
    with pytest.raises(EngineError, match="holds 60 tokens; call cmp_reset first"):
        cmp_prefill(session, token_ids, 2)
    with pytest.raises(EngineError, match="got both; leave out one"):
        load(model, extra={"lookup": "1", "draft": model.path})
    with pytest.raises(EngineError, match="draft expects a GGUF file, got 'nowhere'"):
        load(model, extra={"draft": "nowhere"})
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"broken\.gguf"):
        load(model, extra={"draft": str(broken)})


def test_a_draft_of_another_vocabulary_is_refused(tiny_model: Tiny, load: Any) -> None:
    model = tiny_model("llama", "F32")
    file = read_gguf(model.path)
    tokens, types = (list(file.metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
    rows = {name: file.float32(name) for name in ("token_embd.weight", "output.weight")}
    other = changed_model(
        model,
        {
            "tokenizer.ggml.tokens": ("STRING", [*tokens, "one more"]),
            "tokenizer.ggml.token_type": ("INT32", [*types, 1]),
        },
        {name: np.vstack((each, each[:1])) for name, each in rows.items()},
    )
    with pytest.raises(UnsupportedModel, match=f"a draft model of {len(tokens)} token ids, got {len(tokens) + 1}"):
        load(model, extra={"draft": other.path})


def test_guesses_are_greedy_alone(tiny_model: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny_model("llama", "F32"), max_sequences=2, extra={"lookup": "2"})
    cmp_reset(session)
    with pytest.raises(EngineError, match="expected greedy decoding beside draft or lookup"):
        cmp_decoding(session, Decoding(temperature=1.0))
    request = Request(id="a", token_ids=token_ids, output_tokens=3, decoding=Decoding(end_ids=(1,)))
    with pytest.raises(EngineError, match="expected greedy decoding beside draft or lookup"):
        cmp_submit(session, request)
    assert isinstance(cmp_prefill(session, token_ids, 3), int)
