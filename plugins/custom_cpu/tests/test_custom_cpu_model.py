"""What only this engine does with a file and its options: types, pieces, windows, caches, threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

import enginecmp_custom_cpu
from enginecmp import ContextOverflow, EngineError, LoadOptions, ModelInfo, UnknownOption, UnsupportedModel, read_gguf
from enginecmp.gate.divergence import divergence
from enginecmp.testing import float64
from enginecmp.testing.sessions import require_engine
from enginecmp.testing.tiny_models import ARCHITECTURES, TOKEN_IDS, Fields, changed_model
from enginecmp_custom_cpu import cmp_load, cmp_metrics, cmp_prefill, cmp_reset, cmp_score, cmp_unload

Tiny = Callable[..., ModelInfo]
EXACT = 1e-8
QUANTIZED = 2e-2


@pytest.mark.parametrize("chunk", ["1", "7"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_in_pieces_has_the_distribution_of_float64(
    architecture: str, chunk: str, tiny: Tiny, load: Any
) -> None:
    model = tiny(architecture)
    logits = cmp_score(load(model, extra={"prompt_chunk": chunk}), TOKEN_IDS)
    assert logits.dtype == np.float32
    assert divergence(float64.logits(model.path, TOKEN_IDS), logits).mean_kl < EXACT


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_1", "Q4_K", "Q6_K"])
def test_pieces_and_threads_change_no_bit(kind: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    whole = cmp_score(load(model, numerics="default"), TOKEN_IDS)
    for chunk in ("1", "13"):
        found = cmp_score(load(model, numerics="default", extra={"prompt_chunk": chunk}), TOKEN_IDS)
        np.testing.assert_array_equal(whole, found)
    for threads in (2, 3):
        session = cmp_load(model, LoadOptions(threads=threads, context_tokens=256))
        np.testing.assert_array_equal(whole, cmp_score(session, TOKEN_IDS))
        cmp_unload(session)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_of_equally_likely_tokens_the_first_is_chosen(threads: int, tiny: Tiny) -> None:
    require_engine(enginecmp_custom_cpu)
    plain = tiny("llama")
    rows = read_gguf(plain.path).float32("output.weight").copy()
    rows[:] = np.abs(rows[:1])  # every id is as likely as every other
    session = cmp_load(changed_model(plain, tensors={"output.weight": rows}), LoadOptions(threads=threads))
    assert cmp_prefill(session, TOKEN_IDS, 1) == 0
    cmp_unload(session)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_matrices_of_16_bits_lose_nothing(kind: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    assert divergence(float64.logits(model.path, TOKEN_IDS), cmp_score(load(model), TOKEN_IDS)).mean_kl < EXACT


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize(("own", "wanted", "meant"), [(0, 16, 16), (40, 16, 16), (16, 40, 16), (33, 0, 33)])
def test_a_window_is_the_models_or_the_one_asked_for(
    architecture: str, own: int, wanted: int, meant: int, tiny: Tiny, load: Any
) -> None:
    key = f"{architecture}.attention.sliding_window"
    model = changed_model(tiny(architecture), {key: ("UINT32", own)} if own else {})
    oracle = changed_model(tiny(architecture), {key: ("UINT32", meant)})
    prompt = (TOKEN_IDS * 2)[:100]  # pages behind the window are given back
    session = load(model, extra={"sliding_window": str(wanted), "prompt_chunk": "9"})
    assert divergence(float64.logits(oracle.path, prompt), cmp_score(session, prompt)).mean_kl < EXACT


def test_tokens_behind_a_window_are_those_of_a_prompt_of_them(tiny: Tiny, load: Any, generate: Any) -> None:
    model = changed_model(tiny("llama"), {"llama.attention.sliding_window": ("UINT32", 20)})
    session = load(model)
    ids = generate(session, TOKEN_IDS, 120)
    rows = cmp_score(load(model), [*TOKEN_IDS, *ids[:-1]])
    assert rows[len(TOKEN_IDS) - 1 :].argmax(axis=1).tolist() == ids
    assert cmp_metrics(session)["kv_cache_bytes"] > 0


@pytest.mark.parametrize(("kind", "limit"), [("f32", EXACT), ("f16", 1e-6), ("q8_0", 1e-3)])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_smaller_cache_costs_what_its_rounding_costs(
    kind: str, limit: float, architecture: str, tiny: Tiny, load: Any
) -> None:
    model = tiny(architecture)
    logits = cmp_score(load(model, numerics="default", extra={"kv_type": kind}), TOKEN_IDS)
    found = divergence(float64.logits(model.path, TOKEN_IDS), logits).mean_kl
    assert found < limit
    assert kind == "f32" or found > 1e-10


def test_kv_cache_bytes_are_those_of_its_type(tiny: Tiny, load: Any) -> None:
    model = tiny("llama", head_dim=32)
    values = 2 * 2 * 2 * 32  # keys and values, layers, heads, of 32 each
    for kind, size in (("f32", 4), ("f16", 2), ("q8_0", 34 / 32)):
        session = load(model, numerics="default", extra={"kv_type": kind})
        cmp_prefill(session, TOKEN_IDS, 1)
        assert cmp_metrics(session)["kv_cache_bytes"] == len(TOKEN_IDS) * values * size
        cmp_reset(session)
        assert cmp_metrics(session)["kv_cache_bytes"] == 0


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("packing", ["load", "first_use"])
def test_weights_bytes_are_what_lies_in_memory(kind: str, packing: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", kind)
    in_file = sum(tensor.nbytes for tensor in read_gguf(model.path).tensors.values())
    session = load(model, extra={"packing": packing})
    for _ in range(2):
        # Rows are padded to whole tiles.
        assert in_file <= cmp_metrics(session)["weights_bytes"] < 1.15 * in_file
        cmp_score(session, TOKEN_IDS)


def test_phases_of_the_load_are_told_once_after_it(tiny: Tiny, load: Any) -> None:
    began = time.perf_counter()
    session = load(tiny())
    took = time.perf_counter() - began
    told = {name: value for name, value in cmp_metrics(session).items() if name.startswith("load_")}
    assert set(told) == {"load_parse_seconds", "load_map_seconds", "load_init_seconds"}
    assert min(told.values()) > 0
    assert sum(told.values()) <= took
    assert not [name for name in cmp_metrics(session) if name.startswith("load_")]


def test_packing_changes_no_bit(tiny: Tiny, load: Any) -> None:
    model = tiny("phi3", "Q8_0")
    at_load, at_use = (cmp_score(load(model, extra={"packing": when}), TOKEN_IDS) for when in ("load", "first_use"))
    np.testing.assert_array_equal(at_load, at_use)


@pytest.mark.parametrize(
    ("fields", "without", "message"),
    [
        ({"llama.expert_count": ("UINT32", 8)}, "", r"got llama\.expert_count = Unsigned\(8\)"),
        ({"llama.rope.scaling.type": ("STRING", "yarn")}, "", "got 'yarn'"),
        ({"llama.attention.head_count_kv": ("UINT32", 3)}, "", "heads to be a multiple of kv heads, got 4 and 3"),
        ({"llama.attention.head_count": ("UINT32", 0)}, "", "at least 1, got 0"),
        ({"llama.attention.key_length": ("UINT64", 2**62)}, "", "heads that a file can hold, got 4 of"),
        ({"llama.block_count": ("UINT64", 2**62)}, "", r"a tensor blk\.2\.attn_q\.weight, got none"),
        ({"llama.rope.dimension_count": ("UINT32", 7)}, "", r"an even rope\.dimension_count"),
        ({"llama.attention.causal": ("BOOL", False)}, "", "causal attention"),
        ({}, "blk.1.attn_q.weight", r"a tensor blk\.1\.attn_q\.weight, got none"),
        ({"llama.embedding_length": ("UINT32", 128)}, "", r"token_embd.weight of shape \[\d+, 128\]"),
    ],
)
def test_a_file_that_asks_for_more_than_is_implemented_is_refused(
    fields: Fields, without: str, message: str, tiny: Tiny, load: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        load(changed_model(tiny(), fields, without=[without]))


def test_a_type_without_kernels_is_refused(tiny: Tiny, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"a type among F32, .*, got GGML type 11"):
        load(tiny("llama", "Q3_K"))


def test_learned_positions_bound_the_context(tiny: Tiny, load: Any) -> None:
    model = tiny("gpt2")
    session = load(model, context_tokens=100_000)
    rows = read_gguf(model.path).tensors["position_embd.weight"].shape[0]
    with pytest.raises(ContextOverflow, match=rf"holds {rows}; the model has no positions beyond"):
        cmp_prefill(session, [1] * rows, 2)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        ({"lookups": "3"}, UnknownOption, "did you mean"),
        ({"prefix_cache": "yes"}, UnknownOption, "one of off, on"),
        ({"kv_type": "f8"}, UnknownOption, "one of f16, q8_0, f32"),
        ({"lookup": "-1"}, EngineError, "whole number from 0 to 64, got '-1'"),
        ({"draft": "nowhere.gguf"}, EngineError, "draft expects a GGUF file, got 'nowhere.gguf'"),
        ({"draft": "nowhere.gguf", "lookup": "2"}, EngineError, "leave out one"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    extra: dict[str, str], error: type[Exception], message: str, tiny: Tiny, load: Any
) -> None:
    with pytest.raises(error, match=message):
        load(tiny(), extra=extra)


def test_a_context_shift_needs_positions_that_turn_and_a_page(tiny: Tiny, load: Any) -> None:
    with pytest.raises(EngineError, match="needs rotary positions"):
        load(tiny("gpt2"), extra={"context_shift": "on"})
    with pytest.raises(EngineError, match=r"needs a context of 32 tokens, got 20; .*32"):
        load(tiny("llama"), context_tokens=20, extra={"context_shift": "on"})


def test_a_file_that_is_gone_is_an_error(tiny: Tiny, load: Any) -> None:
    with pytest.raises(UnsupportedModel, match="got: No such file"):
        load(msgspec.structs.replace(tiny(), path="/nowhere.gguf"))
