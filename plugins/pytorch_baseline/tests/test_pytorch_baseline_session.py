"""Prefill, decode, reset, limits and metrics of a loaded model."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np
import pytest

from enginecmp import ContextOverflow, EngineError
from enginecmp.testing.tiny_models import changed_model
from enginecmp_pytorch_baseline import (
    cmp_decode,
    cmp_metrics,
    cmp_prefill,
    cmp_profile,
    cmp_reset,
    cmp_score,
    cmp_unload,
)

ARCHITECTURES = ["llama", "qwen2", "phi3", "gpt2"]
LAYERS, HEAD_DIM = 2, 16  # of every tiny model
KV_HEADS = {"llama": 2, "qwen2": 2, "phi3": 2, "gpt2": 4}
PROMPT = [262, 82, 34, 93, 129, 255, 141]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("prompt_tokens", [1, 9])
def test_logits_step_by_step_are_those_of_one_forward_pass(
    architecture: str, prompt_tokens: int, tiny: Any, load: Any
) -> None:
    import torch

    session = load(tiny(architecture))
    ids = np.random.default_rng(1).integers(0, 300, 24).tolist()
    whole = cmp_score(session, ids)
    parts = [session.forward(torch.tensor([ids[:prompt_tokens]]))]
    parts += [session.forward(torch.tensor([[token]])) for token in ids[prompt_tokens:]]
    steps = torch.cat(parts, dim=1)[0].numpy()  # (1 + rest, vocabulary)
    np.testing.assert_allclose(steps, whole[prompt_tokens - 1 :], atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_ids_are_the_most_likely_ones_of_their_own_prefix(architecture: str, tiny: Any, load: Any) -> None:
    session = load(tiny(architecture))
    generated = [cmp_prefill(session, PROMPT, 12), *cmp_decode(session, 11)]
    scores = cmp_score(session, PROMPT + generated)
    assert generated == scores[len(PROMPT) - 1 : -1].argmax(axis=-1).tolist()
    assert len(set(generated)) > 1


def test_decode_yields_exactly_as_many_ids_as_asked_one_forward_pass_each(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    cmp_prefill(session, PROMPT, 6)
    stream = cmp_decode(session, 5)
    for done in range(1, 6):
        next(stream)
        assert session.past == len(PROMPT) + done
    assert list(stream) == []


def test_decode_goes_on_where_the_last_decode_stopped(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    cmp_prefill(session, PROMPT, 9)
    at_once = list(cmp_decode(session, 8))
    cmp_reset(session)
    cmp_prefill(session, PROMPT, 9)
    assert [*cmp_decode(session, 3), *cmp_decode(session, 5)] == at_once


def test_decode_before_prefill_raises(tiny: Any, load: Any) -> None:
    with pytest.raises(EngineError, match="call cmp_prefill before cmp_decode"):
        next(cmp_decode(load(tiny("llama")), 1))


def test_reset_leaves_nothing_of_the_request_before(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    cmp_prefill(session, PROMPT, 5)
    first = list(cmp_decode(session, 4))
    cmp_reset(session)
    assert cmp_metrics(session)["kv_cache_bytes"] == 0
    with pytest.raises(EngineError, match="KV cache is empty"):
        next(cmp_decode(session, 1))
    cmp_prefill(session, PROMPT[::-1], 5)
    other = list(cmp_decode(session, 4))
    cmp_reset(session)
    cmp_prefill(session, PROMPT, 5)
    assert list(cmp_decode(session, 4)) == first != other


def test_scoring_leaves_the_cache_empty(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    cmp_score(session, PROMPT)
    assert cmp_metrics(session)["kv_cache_bytes"] == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kv_cache_bytes_are_two_float32_vectors_a_head_layer_and_token(architecture: str, tiny: Any, load: Any) -> None:
    session = load(tiny(architecture))
    for decoded in (0, 6):
        cmp_reset(session)
        cmp_prefill(session, PROMPT, decoded + 1)
        list(cmp_decode(session, decoded))
        # The last id handed out has not been through the model yet.
        held = len(PROMPT) + decoded
        assert cmp_metrics(session)["kv_cache_bytes"] == LAYERS * 2 * KV_HEADS[architecture] * HEAD_DIM * 4 * held


def test_phases_of_the_load_are_told_once_after_it(tiny: Any, load: Any) -> None:
    began = time.perf_counter()
    session = load(tiny("llama"))
    took = time.perf_counter() - began
    told = {name: value for name, value in cmp_metrics(session).items() if name.startswith("load_")}
    assert set(told) == {"load_parse_seconds", "load_map_seconds", "load_init_seconds"}
    assert min(told.values()) > 0
    assert sum(told.values()) <= took
    assert not [name for name in cmp_metrics(session) if name.startswith("load_")]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_bytes_are_four_a_parameter_tied_ones_counted_once(architecture: str, tiny: Any, load: Any) -> None:
    model = tiny(architecture)
    assert cmp_metrics(load(model))["weights_bytes"] == 4 * model.parameters


def test_cpu_reports_no_device_times(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    cmp_prefill(session, PROMPT, 1)
    assert set(cmp_metrics(session)) == {"weights_bytes", "kv_cache_bytes"}


def test_a_request_that_just_fits_the_context_runs_and_one_token_more_is_refused(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"), context_tokens=10)
    cmp_prefill(session, PROMPT, 4)  # 7 + 4 - 1 = 10: the last id needs no place
    assert len(list(cmp_decode(session, 3))) == 3
    with pytest.raises(
        ContextOverflow, match="token would be number 11, the context holds 10; load it with context_tokens=11"
    ):
        next(cmp_decode(session, 1))
    cmp_reset(session)
    with pytest.raises(ContextOverflow, match="prompt has 7 tokens and the request needs 11, the context holds 10"):
        cmp_prefill(session, PROMPT, 5)


def test_scoring_more_than_the_context_is_refused(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"), context_tokens=10)
    assert cmp_score(session, [1] * 10).shape[0] == 10
    with pytest.raises(ContextOverflow, match="load it with context_tokens=11"):
        cmp_score(session, [1] * 11)


def test_learned_positions_end_the_context_whatever_was_asked_for(tiny: Any, load: Any) -> None:
    session = load(tiny("gpt2"), context_tokens=600)
    assert cmp_score(session, [1] * 512).shape[0] == 512
    with pytest.raises(ContextOverflow, match="the context holds 512; the model has no more learned positions"):
        cmp_score(session, [1] * 513)


def test_beyond_the_sliding_window_is_refused(tiny: Any, load: Any) -> None:
    model = changed_model(tiny("phi3"), {"phi3.attention.sliding_window": ("UINT32", 20)})
    session = load(model)
    assert (cmp_score(session, [1] * 20) == cmp_score(load(tiny("phi3")), [1] * 20)).all()
    with pytest.raises(ContextOverflow, match="the context holds 20; attention beyond the model's sliding window"):
        cmp_score(session, [1] * 21)


@pytest.mark.parametrize("ids", [[], [314], [-1, 3]])
def test_prompts_that_are_empty_or_name_ids_that_do_not_exist_are_refused(ids: list[int], tiny: Any, load: Any) -> None:
    model = tiny("llama")
    assert model.vocabulary == 314
    with pytest.raises(EngineError, match=r"^pytorch_baseline: expected"):
        cmp_prefill(load(model), ids, 1)


def test_unload_lets_go_of_the_weights(tiny: Any, load: Any) -> None:
    import gc
    import weakref

    session = load(tiny("llama"))
    weights = weakref.ref(session.model.token_embd.weight)
    cmp_unload(session)
    gc.collect()
    assert weights() is None


def test_profile_names_every_component_and_leaves_neither_hooks_nor_cache(tiny: Any, load: Any) -> None:
    session = load(tiny("llama"))
    seconds = cmp_profile(session, PROMPT, 3)
    assert set(seconds) == {"embedding", "norm", "rope", "attention", "ffn", "lm_head", "sampling", "other"}
    assert min(seconds.values()) > 0
    assert cmp_metrics(session)["kv_cache_bytes"] == 0
    for module in session.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_profile_of_learned_positions_has_no_rope(tiny: Any, load: Any) -> None:
    assert cmp_profile(load(tiny("gpt2")), PROMPT, 1)["rope"] == 0


def test_profile_charges_each_moment_to_the_innermost_region_and_sums_to_the_whole(
    tiny: Any, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that moves 1 s at every reading: the seconds of a component are its regions' boundaries."""
    from enginecmp_pytorch_baseline import profile

    readings = itertools.count(0, 1_000_000_000)
    monkeypatch.setattr(profile, "perf_counter_ns", lambda: next(readings))
    seconds = cmp_profile(load(tiny("llama")), PROMPT, 1)
    passes = 2
    # Per pass and layer: attention is interrupted by two rotary embeddings and so has three pieces.
    assert seconds["rope"] == passes * LAYERS * 2
    assert seconds["attention"] == passes * LAYERS * 3
    assert seconds["ffn"] == passes * LAYERS
    assert seconds["norm"] == passes * (LAYERS * 2 + 1)
    assert seconds["embedding"] == seconds["lm_head"] == seconds["sampling"] == passes
    assert sum(seconds.values()) == next(readings) / 1e9 - 1
