"""One request after the other: tokens, stamps, limits, sizes, refusals."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import ContextOverflow, EngineError, GGUFFile, ModelError, ModelInfo, UnsupportedModel, read_gguf
from enginecmp_burn import cmp_decode, cmp_metrics, cmp_prefill, cmp_reset, cmp_score, cmp_unload

ARCHITECTURES = ("llama", "qwen2", "phi3")
Tiny = Callable[..., ModelInfo]


def generate(session: Any, token_ids: list[int], output_tokens: int) -> list[int]:
    cmp_reset(session)
    first = cmp_prefill(session, token_ids, output_tokens)
    return [first, *cmp_decode(session, output_tokens - 1)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generated_tokens_are_the_argmax_of_teacher_forced_scores(
    architecture: str, tiny: Tiny, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny(architecture))
    generated = generate(session, token_ids[:20], 24)
    cmp_reset(session)
    rows = cmp_score(session, token_ids[:20] + generated[:-1])
    assert generated == rows[19:].argmax(axis=1).tolist()
    assert len(set(generated)) > 1


def test_a_request_leaves_nothing_behind_after_reset(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    first = generate(session, token_ids[:9], 12)
    generate(session, token_ids[20:], 30)
    cmp_reset(session)
    cmp_score(session, token_ids)
    assert generate(session, token_ids[:9], 12) == first


def test_decode_goes_on_where_it_stopped(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    whole = generate(session, token_ids[:9], 12)
    cmp_reset(session)
    parts = [cmp_prefill(session, token_ids[:9], 12), *cmp_decode(session, 4), *cmp_decode(session, 7)]
    assert parts == whole


def test_stamps_are_on_the_clock_of_the_host(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    first = cmp_prefill(session, token_ids, 9)
    before = time.perf_counter_ns()
    ids, stamps = session.decode(8)
    after = time.perf_counter_ns()
    assert [before, *stamps, after] == sorted([before, *stamps, after])
    assert len(set(stamps)) == 8
    assert [first, *ids] == generate(session, token_ids, 9)


def test_engine_times_are_parts_of_the_host_s(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    assert not [name for name in cmp_metrics(session) if name.endswith("_seconds")]
    start = time.perf_counter()
    generate(session, token_ids, 8)
    wall = time.perf_counter() - start
    metrics = cmp_metrics(session)
    assert metrics["engine_prefill_seconds"] > 0
    assert metrics["engine_decode_seconds"] > 0
    assert metrics["engine_prefill_seconds"] + metrics["engine_decode_seconds"] <= wall


def test_other_threads_run_while_burn_computes(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), context_tokens=512)
    prompt = (token_ids * 9)[:500]
    woken = threading.Event()
    ran: list[bool] = []
    other = threading.Thread(target=lambda: (woken.wait(), ran.append(True)))
    other.start()
    interval = sys.getswitchinterval()
    # Nobody takes the interpreter away from this thread, so the other one runs only where the extension lets go of it.
    sys.setswitchinterval(1000)
    try:
        woken.set()
        for _ in range(20):
            session.score(prompt)
            if ran:
                break
        seen = list(ran)
    finally:
        sys.setswitchinterval(interval)
    other.join()
    assert seen == [True]


def test_a_request_may_fill_the_context_and_no_more(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny(), context_tokens=40)
    assert len(generate(session, token_ids[:20], 21)) == 21
    with pytest.raises(ContextOverflow, match="1 more tokens after 40 do not fit, the context holds 40"):
        next(cmp_decode(session, 1))
    cmp_reset(session)
    with pytest.raises(ContextOverflow, match=r"prompt has 20 tokens and 22 are to come.*--context 41"):
        cmp_prefill(session, token_ids[:20], 22)
    assert cmp_score(session, token_ids[:40]).shape[0] == 40
    with pytest.raises(ContextOverflow, match="prompt has 41 tokens"):
        cmp_score(session, token_ids[:41])


def test_a_sliding_window_bounds_the_context(tiny: Tiny, load: Any, rewrite: Any, token_ids: list[int]) -> None:
    model = rewrite(tiny("phi3"), {"phi3.attention.sliding_window": ("UINT32", 30)})
    session = load(model)
    assert len(generate(session, token_ids[:20], 11)) == 11
    cmp_reset(session)
    with pytest.raises(ContextOverflow, match=r"the context holds 30; attention beyond the model's sliding window"):
        cmp_prefill(session, token_ids[:20], 12)


def test_a_context_that_no_memory_holds_is_an_error_and_not_the_end(
    tiny: Tiny, load: Any, token_ids: list[int]
) -> None:
    with pytest.raises(MemoryError, match="burn: no room for keys and values of 1000000000000000 tokens"):
        load(tiny(), context_tokens=10**15)
    assert len(generate(load(tiny()), token_ids, 3)) == 3


@pytest.mark.parametrize("outside", [-1, 314, 2**40])
def test_an_id_outside_the_vocabulary_is_an_error_and_the_session_lives_on(
    outside: int, tiny: Tiny, load: Any, token_ids: list[int]
) -> None:
    model = tiny()
    session = load(model)
    with pytest.raises(EngineError, match=rf"burn: expected ids in \[0, {model.vocabulary}\), .* at position 2"):
        cmp_prefill(session, [1, 2, outside], 1)
    assert len(generate(session, token_ids, 3)) == 3


def test_hooks_in_the_wrong_order_say_what_to_call(tiny: Tiny, load: Any, token_ids: list[int]) -> None:
    session = load(tiny())
    with pytest.raises(EngineError, match="call cmp_prefill first"):
        next(cmp_decode(session, 1))
    with pytest.raises(EngineError, match="at least one token"):
        cmp_prefill(session, [], 1)
    cmp_prefill(session, token_ids[:5], 1)
    with pytest.raises(EngineError, match="it holds 5 tokens; call cmp_reset first"):
        cmp_prefill(session, token_ids[:5], 1)
    cmp_unload(session)
    with pytest.raises(EngineError, match="it was unloaded; call cmp_load again"):
        cmp_reset(session)


# Tiny llama: 2 layers x 2 KV heads x 16 elements x 4 bytes, keys and values.
@pytest.mark.parametrize("length", [1, 50])
def test_kv_cache_bytes_are_those_of_the_tokens_in_the_cache(
    length: int, tiny: Tiny, load: Any, token_ids: list[int]
) -> None:
    session = load(tiny())
    assert cmp_metrics(session)["kv_cache_bytes"] == 0
    generate(session, token_ids[:length], 4)
    # The last token of an answer is never run.
    assert cmp_metrics(session)["kv_cache_bytes"] == 512 * (length + 3)


@pytest.mark.parametrize("quantization", ["F32", "Q8_0", "F16"])
def test_weights_bytes_are_those_of_float32(quantization: str, tiny: Tiny, load: Any) -> None:
    model = tiny("llama", quantization)
    wanted = sum(4 * math.prod(tensor.shape) for tensor in read_gguf(model.path).tensors.values())
    assert cmp_metrics(load(model))["weights_bytes"] == wanted


def test_a_tied_head_is_in_memory_once(tiny: Tiny, load: Any) -> None:
    model = tiny("qwen2")
    tensors = read_gguf(model.path).tensors
    assert "output.weight" not in tensors
    assert cmp_metrics(load(model))["weights_bytes"] == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize(
    ("fields", "without", "message"),
    [
        ({"general.architecture": ("STRING", "gpt2")}, "", "an architecture among llama, qwen2, phi3, came 'gpt2'"),
        ({"llama.expert_count": ("UINT32", 8)}, "", r"came llama\.expert_count = 8"),
        ({"llama.rope.scaling.type": ("STRING", "yarn")}, "", "came 'yarn'"),
        ({"llama.attention.head_count_kv": ("UINT32", 3)}, "", "heads to be a multiple of kv heads, came 4 and 3"),
        ({}, "blk.1.attn_q.weight", r"a tensor blk\.1\.attn_q\.weight, came none"),
        ({"llama.embedding_length": ("UINT32", 128)}, "", r"token_embd.weight of shape \[\d+, 128\]"),
        ({"llama.attention.value_length": ("UINT32", 8)}, "", "value_length to equal key_length, came 8 and 16"),
        ({"llama.rope.dimension_count": ("UINT32", 18)}, "", "an even rope.dimension_count up to 16, came 18"),
        ({"llama.attention.causal": ("BOOL", False)}, "", r"causal attention, came llama\.attention\.causal = false"),
        ({"llama.block_count": ("UINT32", 1)}, "", r"only tensors that are implemented here, came blk\.1\.attn_k"),
    ],
)
def test_a_file_that_asks_for_more_than_is_implemented_is_refused(
    fields: dict[str, tuple[str, Any]], without: str, message: str, tiny: Tiny, load: Any, rewrite: Any
) -> None:
    with pytest.raises(UnsupportedModel, match=message) as raised:
        load(rewrite(tiny(), fields, without))
    assert "\n" not in str(raised.value)


def test_what_reading_a_tensor_raises_is_what_the_caller_sees(
    tiny: Tiny, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(self: GGUFFile, name: str) -> NDArray[np.float32]:
        msg = f"{name} is on a broken disk"
        raise ModelError(msg)

    monkeypatch.setattr(GGUFFile, "float32", unreadable)
    with pytest.raises(ModelError, match=r"token_embd.weight is on a broken disk"):
        load(tiny())


def test_a_panic_in_burn_is_an_error_of_one_line(tiny: Tiny, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GGUFFile, "float32", lambda self, name: np.zeros(3, np.float32))
    with pytest.raises(EngineError, match=r"burn: panicked while .* for input of size 3") as raised:
        load(tiny())
    assert "\n" not in str(raised.value)


def test_a_part_of_a_head_may_turn(tiny: Tiny, load: Any, rewrite: Any, token_ids: list[int]) -> None:
    whole = cmp_score(load(tiny()), token_ids)
    part = cmp_score(load(rewrite(tiny(), {"llama.rope.dimension_count": ("UINT32", 8)})), token_ids)
    # At position 0 nothing turns, so there is no difference to see.
    np.testing.assert_allclose(part[0], whole[0], atol=1e-5, rtol=0)
    assert np.abs(part[1:] - whole[1:]).max() > 1e-3
