"""Diffusion models in llama.cpp: batches in one pass, and the same weights generating token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import enginecmp_llamacpp as engine
from enginecmp import ContextOverflow, EngineError, UnsupportedModel
from enginecmp.models.diffusion import write_autoregressive
from enginecmp.testing.sessions import sessions
from enginecmp.testing.tiny_models import TOKEN_IDS, changed_model, tiny_model

PROMPTS = [list(TOKEN_IDS[start : start + 9]) for start in (0, 20, 40)]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from sessions(engine, monkeypatch)


@pytest.mark.parametrize("architecture", ["llada", "dream"])
def test_next_tokens_are_those_of_the_autoregressive_file(architecture: str, load: Any, tmp_path: Any) -> None:
    model = tiny_model(tmp_path, architecture)
    twin = write_autoregressive(model, tmp_path / "twin.gguf")
    assert twin.architecture == {"llada": "llama", "dream": "qwen2"}[architecture]
    ids = [
        [engine.cmp_prefill(session, PROMPTS[0], 8), *engine.cmp_decode(session, 7)]
        for session in (load(model), load(twin))
    ]
    assert ids[0] == ids[1]


def test_a_batch_in_one_pass_commits_what_each_prompt_alone_does(load: Any, tmp_path: Any) -> None:
    session = load(tiny_model(tmp_path, "llada"), max_sequences=3)
    together = {place for step in engine.cmp_denoise(session, PROMPTS, 16, 4, 8) for place in step}
    alone = {
        (number, position, token)
        for number, prompt in enumerate(PROMPTS)
        for step in engine.cmp_denoise(session, [prompt], 16, 4, 8)
        for _, position, token in step
    }
    assert len(together) == 3 * 16
    assert len(together & alone) >= 40  # sums in another order may part two that are nearly alike


def test_more_tokens_than_llama_cpps_default_batch_do_not_end_the_process(load: Any, tmp_path: Any) -> None:
    # Without a causal mask llama.cpp aborts on more tokens than n_ubatch, 512 by itself.
    session = load(tiny_model(tmp_path, "llada"), max_sequences=3, context_tokens=256)
    prompt = [7] * 240
    steps = list(engine.cmp_denoise(session, [prompt] * 3, 16, 1, 16))
    assert len(steps[0]) == 48


def test_a_file_that_says_otherwise_of_the_shift_is_followed(load: Any, tmp_path: Any) -> None:
    model = tiny_model(tmp_path, "llada")
    ids = [*PROMPTS[0], model.vocabulary - 1, *PROMPTS[1]]
    shifted = load(changed_model(model, without=["diffusion.shift_logits"]))
    plain = load(model)
    np.testing.assert_allclose(engine.cmp_score(shifted, ids)[1:], engine.cmp_score(plain, ids)[:-1], atol=1e-5, rtol=0)


def test_what_does_not_fit_or_cannot_be_is_refused(load: Any, tmp_path: Any) -> None:
    model = tiny_model(tmp_path, "llada")
    session = load(model)
    with pytest.raises(ContextOverflow, match="max_sequences=2"):
        engine.cmp_denoise(session, PROMPTS[:2], 8, 2, 8)
    with pytest.raises(ContextOverflow):
        engine.cmp_score(session, [1] * 257)
    with pytest.raises(EngineError, match="no next token to guess"):
        load(model, extra={"lookup": "2"})
    with pytest.raises(EngineError, match="expected a diffusion model"):
        engine.cmp_denoise(load(tiny_model(tmp_path, "llama")), PROMPTS[:1], 8, 2, 8)
    with pytest.raises(UnsupportedModel):
        load(changed_model(model, without=["blk.0.attn_q.weight"]))
    bare = load(changed_model(model, without=["tokenizer.ggml.mask_token_id"]))
    with pytest.raises(EngineError, match="mask token"):
        engine.cmp_denoise(bare, PROMPTS[:1], 8, 2, 8)
