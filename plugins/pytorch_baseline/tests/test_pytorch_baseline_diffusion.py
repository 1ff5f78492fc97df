"""Diffusion models: bidirectional logits held against llama.cpp's, and denoising held against them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginecmp import EngineError, UnsupportedModel
from enginecmp.testing.tiny_models import TOKEN_IDS, changed_model
from enginecmp_pytorch_baseline import cmp_decode, cmp_denoise, cmp_prefill, cmp_score

ARCHITECTURES = ["llada", "dream"]


def masked(mask: int) -> list[int]:
    ids = list(TOKEN_IDS[:40])
    ids[10:20] = [mask] * 10
    ids[39] = mask
    return ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_those_of_llama_cpp_at_masked_positions(
    architecture: str, tiny: Any, load: Any, llama_cpp_logits: Any, kl: Any
) -> None:
    model = tiny(architecture)
    ids = masked(model.vocabulary - 1)
    wanted = llama_cpp_logits(model, ids)
    if architecture == "dream":  # what is at a position is told one position before
        wanted = np.concatenate([wanted[:1], wanted[:-1]])
    found = cmp_score(load(model), ids)
    assert kl(wanted, found).max() < 1e-8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_that_says_otherwise_of_the_shift_is_followed(architecture: str, tiny: Any, load: Any) -> None:
    model = tiny(architecture)
    ids = masked(model.vocabulary - 1)
    other = changed_model(model, fields={"diffusion.shift_logits": ("BOOL", architecture == "llada")})
    one, two = cmp_score(load(model), ids), cmp_score(load(other), ids)
    shifted, plain = (one, two) if architecture == "dream" else (two, one)
    np.testing.assert_allclose(shifted[1:], plain[:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_tokens_are_those_of_the_same_weights_with_a_causal_mask(architecture: str, tiny: Any, load: Any) -> None:
    model = tiny(architecture)
    causal = {"llada": "llama", "dream": "qwen2"}[architecture]
    # The weights of a tiny model depend on names and seed alone, its shape aside.
    twin = changed_model(
        model,
        fields={"general.architecture": ("STRING", causal)}
        | {
            f"{causal}.{key}": (kind, value)
            for key, kind, value in [
                ("block_count", "UINT32", 2),
                ("context_length", "UINT32", 512),
                ("embedding_length", "UINT32", 64),
                ("feed_forward_length", "UINT32", 128),
                ("attention.head_count", "UINT32", 4),
                ("attention.head_count_kv", "UINT32", 4 if architecture == "llada" else 2),
                ("attention.layer_norm_rms_epsilon", "FLOAT32", 1e-5),
                ("rope.dimension_count", "UINT32", 16),
                ("rope.freq_base", "FLOAT32", 10000.0),
            ]
        },
    )
    ids = [
        [cmp_prefill(session, list(TOKEN_IDS[:9]), 8), *cmp_decode(session, 7)] for session in (load(model), load(twin))
    ]
    assert ids[0] == ids[1]


def test_a_causal_file_and_one_without_a_mask_are_refused(tiny: Any, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match="both directions"):
        load(changed_model(tiny("llada"), fields={"llada.attention.causal": ("BOOL", True)}))
    with pytest.raises(UnsupportedModel, match="mask_token_id"):
        load(changed_model(tiny("llada"), without=["tokenizer.ggml.mask_token_id"]))
    with pytest.raises(UnsupportedModel, match="causal attention"):
        load(changed_model(tiny("llama"), fields={"llama.attention.causal": ("BOOL", False)}))


def test_a_model_that_predicts_the_next_token_cannot_denoise(tiny: Any, load: Any) -> None:
    with pytest.raises(EngineError, match="diffusion model"):
        cmp_denoise(load(tiny("llama")), [[1, 2]], 4, 2, 4)


def test_one_step_commits_the_likeliest_id_of_every_position(tiny: Any, load: Any) -> None:
    model = tiny("llada")
    session, mask = load(model), model.vocabulary - 1
    prompt = list(TOKEN_IDS[:9])
    rows = cmp_score(session, [*prompt, *[mask] * 8])[9:]
    rows[:, mask] = -np.inf
    (step,) = cmp_denoise(session, [prompt], 8, 1, 8)
    assert sorted(step) == [(0, 9 + place, int(best)) for place, best in enumerate(rows.argmax(axis=1))]
