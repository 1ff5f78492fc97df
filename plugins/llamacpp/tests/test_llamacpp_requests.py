"""One request after the other: prefill, decode, score, limits, sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enginecmp import ContextOverflow, EngineError, ModelInfo, read_gguf
from enginecmp_llamacpp import cmp_decode, cmp_metrics, cmp_prefill, cmp_reset, cmp_score, cmp_unload

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt2")


def generate(session: Any, token_ids: list[int], output_tokens: int) -> list[int]:
    cmp_reset(session)
    first = cmp_prefill(session, token_ids, output_tokens)
    return [first, *cmp_decode(session, output_tokens - 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_tokens_are_the_argmax_of_teacher_forced_scores(
    architecture: str, tiny_model: Callable[[str, str], ModelInfo], load: Any, token_ids: list[int]
) -> None:
    session = load(tiny_model(architecture, "F32"))
    generated = generate(session, token_ids[:20], 24)
    cmp_reset(session)
    rows = cmp_score(session, token_ids[:20] + generated[:-1])
    assert generated == rows[19:].argmax(axis=1).tolist()
    assert len(set(generated)) > 1


@pytest.mark.parametrize("n_batch", [1, 7, 60])
def test_a_prompt_in_pieces_gives_the_logits_of_one_piece(
    n_batch: int, tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    whole = cmp_score(load(tiny), token_ids)
    session = load(tiny, extra={"n_batch": str(n_batch)})
    cmp_prefill(session, token_ids, 1)
    np.testing.assert_allclose(session.logits(1)[0], whole[-1], atol=1e-4, rtol=0)
    cmp_reset(session)
    np.testing.assert_allclose(cmp_score(session, token_ids), whole, atol=1e-4, rtol=0)


def test_a_request_leaves_nothing_behind_after_reset(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    first = generate(session, token_ids[:9], 12)
    generate(session, token_ids[20:], 30)
    cmp_reset(session)
    # 60 rows of logits make llama.cpp move its buffer: no view of it may outlive a request.
    cmp_score(session, token_ids)
    assert generate(session, token_ids[:9], 12) == first


def test_decode_goes_on_where_it_stopped(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    whole = generate(session, token_ids[:9], 12)
    cmp_reset(session)
    parts = [cmp_prefill(session, token_ids[:9], 12), *cmp_decode(session, 4), *cmp_decode(session, 7)]
    assert parts == whole


def test_decode_before_prefill_raises(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    with pytest.raises(EngineError, match="call cmp_prefill first"):
        next(cmp_decode(session, 1))
    cmp_prefill(session, token_ids, 1)
    cmp_reset(session)
    with pytest.raises(EngineError, match="call cmp_prefill first"):
        next(cmp_decode(session, 1))


def test_prefill_over_another_prompt_raises(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    cmp_prefill(session, token_ids[:5], 1)
    with pytest.raises(EngineError, match="it holds 5 tokens; call cmp_reset first"):
        cmp_prefill(session, token_ids[:5], 1)


def test_a_request_may_fill_the_context_and_no_more(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    # llama.cpp itself rounds 40 up to 256.
    session = load(tiny, context_tokens=40)
    assert len(generate(session, token_ids[:20], 21)) == 21
    with pytest.raises(ContextOverflow, match="1 more tokens after 40 do not fit, the context holds 40"):
        next(cmp_decode(session, 1))
    cmp_reset(session)
    with pytest.raises(ContextOverflow, match=r"prompt has 20 tokens and 22 are to come.*context_tokens=41"):
        cmp_prefill(session, token_ids[:20], 22)
    assert cmp_score(session, token_ids[:40]).shape[0] == 40
    with pytest.raises(ContextOverflow, match="prompt has 41 tokens"):
        cmp_score(session, token_ids[:41])


def test_the_context_ends_where_the_model_ends(
    tiny_model: Callable[[str, str], ModelInfo], load: Any, token_ids: list[int]
) -> None:
    model = tiny_model("gpt2", "F32")
    session = load(model, context_tokens=10 * model.context_tokens)
    prompt = (token_ids * 20)[: model.context_tokens]
    assert len(generate(session, prompt, 1)) == 1
    cmp_reset(session)
    with pytest.raises(ContextOverflow, match=f"the context holds {model.context_tokens}"):
        cmp_prefill(session, prompt, 2)


def test_an_id_outside_the_vocabulary_is_an_error_and_the_session_lives_on(
    tiny: ModelInfo, load: Any, token_ids: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    session = load(tiny)
    with pytest.raises(EngineError, match=r"token ids or positions are not valid.*invalid token\[2\]"):
        cmp_prefill(session, [1, 2, tiny.vocabulary], 1)
    assert "invalid token" in capfd.readouterr().err
    assert len(generate(session, token_ids, 3)) == 3


def test_an_empty_prompt_is_an_error(tiny: ModelInfo, load: Any) -> None:
    with pytest.raises(EngineError, match="at least one token"):
        cmp_prefill(load(tiny), [], 1)


# Tiny llama: 2 layers x 2 KV heads x 16 elements, keys and values, so 128 elements a token.
@pytest.mark.parametrize(
    ("options", "bytes_a_token"),
    [
        ({"numerics": "exact"}, 512),
        ({"numerics": "default"}, 256),
        ({"numerics": "default", "extra": {"kv_type": "f32"}}, 512),
        ({"numerics": "exact", "extra": {"kv_type": "f16"}}, 512),
    ],
)
def test_kv_cache_bytes_grow_by_keys_and_values_of_the_type_in_use(
    options: dict[str, Any], bytes_a_token: int, tiny: ModelInfo, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny, **options)
    sizes = []
    for length in (10, 50):
        cmp_reset(session)
        cmp_prefill(session, token_ids[:length], 1)
        sizes.append(cmp_metrics(session)["kv_cache_bytes"])
    # llama.cpp adds 12 bytes of bookkeeping to every token.
    assert bytes_a_token <= (sizes[1] - sizes[0]) / 40 <= bytes_a_token + 16


@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_weights_bytes_are_those_of_the_file_without_its_header(
    quantization: str, tiny_model: Callable[[str, str], ModelInfo], load: Any
) -> None:
    model = tiny_model("llama", quantization)
    tensors = read_gguf(model.path).tensors.values()
    assert cmp_metrics(load(model))["weights_bytes"] == sum(tensor.nbytes for tensor in tensors)


def test_phases_of_the_load_are_told_once_after_it(tiny: ModelInfo, load: Any) -> None:
    began = time.perf_counter()
    session = load(tiny)
    took = time.perf_counter() - began
    told = {name: value for name, value in cmp_metrics(session).items() if name.startswith("load_")}
    assert set(told) == {"load_map_seconds", "load_init_seconds"}
    assert min(told.values()) > 0
    assert sum(told.values()) <= took
    assert not [name for name in cmp_metrics(session) if name.startswith("load_")]


def test_engine_timers_cover_the_last_request_only(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    generate(session, token_ids, 8)
    metrics = cmp_metrics(session)
    assert metrics["engine_prefill_seconds"] > 0
    assert metrics["engine_decode_seconds"] > 0
    cmp_reset(session)
    metrics = cmp_metrics(session)
    assert metrics["engine_prefill_seconds"] == metrics["engine_decode_seconds"] == 0


def test_unload_gives_the_file_back_and_may_be_repeated(tiny: ModelInfo, load: Any) -> None:
    session = load(tiny)
    assert tiny.path in Path("/proc/self/maps").read_text()
    cmp_unload(session)
    assert tiny.path not in Path("/proc/self/maps").read_text()
    cmp_unload(session)
