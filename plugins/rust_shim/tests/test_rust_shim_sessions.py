"""Sessions as the shim gives them to Python: order of calls, stamps, limits, sizes, the interpreter let go of."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import unchanged

from enginecmp import ContextOverflow, EngineError, ModelInfo, read_gguf
from enginecmp.gate.divergence import divergence
from enginecmp.testing import float64
from enginecmp.testing.tiny_models import TOKEN_IDS, changed_model

pytestmark = unchanged.left_out_with("plugins/rust_shim", "plugins/candle", "plugins/burn", "plugins/custom_cpu")

Tiny = Callable[..., ModelInfo]
PROMPT = list(TOKEN_IDS)


@pytest.fixture
def generate(engine: ModuleType) -> Callable[..., list[int]]:
    def run(session: Any, token_ids: list[int], output_tokens: int) -> list[int]:
        engine.cmp_reset(session)
        first = engine.cmp_prefill(session, token_ids, output_tokens)
        return [first, *engine.cmp_decode(session, output_tokens - 1)]

    return run


def test_decode_goes_on_where_it_stopped(engine: ModuleType, tiny: Tiny, load: Any, generate: Any) -> None:
    session = load(tiny())
    whole = generate(session, PROMPT[:9], 12)
    engine.cmp_reset(session)
    parts = [engine.cmp_prefill(session, PROMPT[:9], 12)]
    parts += [*engine.cmp_decode(session, 4), *engine.cmp_decode(session, 7)]
    assert parts == whole


def test_a_request_given_up_half_way_leaves_nothing_behind(
    engine: ModuleType, tiny: Tiny, load: Any, generate: Any
) -> None:
    session = load(tiny())
    whole = generate(session, PROMPT[:9], 12)
    engine.cmp_reset(session)
    engine.cmp_prefill(session, PROMPT, 30)
    next(engine.cmp_decode(session, 29))
    assert generate(session, PROMPT[:9], 12) == whole


def test_stamps_are_on_the_clock_of_the_host(engine: ModuleType, tiny: Tiny, load: Any, generate: Any) -> None:
    session = load(tiny())
    first = engine.cmp_prefill(session, PROMPT, 9)
    before = time.perf_counter_ns()
    ids, stamps = session.decode(8)
    after = time.perf_counter_ns()
    assert [before, *stamps, after] == sorted([before, *stamps, after])
    assert len(set(stamps)) == 8
    assert [first, *ids] == generate(session, PROMPT, 9)


def test_engine_times_are_of_the_last_request(engine: ModuleType, tiny: Tiny, load: Any, generate: Any) -> None:
    session = load(tiny())
    generate(session, PROMPT, 8)
    metrics = engine.cmp_metrics(session)
    assert metrics["engine_prefill_seconds"] > 0
    assert metrics["engine_decode_seconds"] > 0
    engine.cmp_reset(session)
    assert not [name for name in engine.cmp_metrics(session) if name.endswith("_seconds")]


def test_other_threads_run_while_the_engine_computes(tiny: Tiny, load: Any) -> None:
    session = load(tiny(), context_tokens=512)
    prompt = (PROMPT * 9)[:500]
    woken = threading.Event()
    ran: list[bool] = []

    def wake() -> None:
        woken.wait()
        ran.append(True)

    other = threading.Thread(target=wake)
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


def test_what_does_not_fit_names_the_context_to_ask_for(
    engine: ModuleType, tiny: Tiny, load: Any, generate: Any
) -> None:
    session = load(tiny(), context_tokens=40)
    assert len(generate(session, PROMPT[:20], 21)) == 21
    with pytest.raises(ContextOverflow, match="1 more tokens after 40 do not fit, the context holds 40"):
        next(engine.cmp_decode(session, 1))
    engine.cmp_reset(session)
    with pytest.raises(ContextOverflow, match=r"prompt has 20 tokens and 22 are to come.*41"):
        engine.cmp_prefill(session, PROMPT[:20], 22)


def test_a_sliding_window_bounds_the_context(engine: ModuleType, tiny: Tiny, load: Any, generate: Any) -> None:
    session = load(changed_model(tiny("phi3"), {"phi3.attention.sliding_window": ("UINT32", 30)}))
    assert len(generate(session, PROMPT[:20], 11)) == 11
    engine.cmp_reset(session)
    with pytest.raises(ContextOverflow, match=r"the context holds 30; attention beyond the model's sliding window"):
        engine.cmp_prefill(session, PROMPT[:20], 12)


def test_a_context_that_no_memory_holds_is_out_of_memory(tiny: Tiny, load: Any) -> None:
    with pytest.raises(MemoryError, match="no room for keys and values of 1000000000000000 tokens"):
        load(tiny(), context_tokens=10**15)


def test_an_id_outside_the_vocabulary_is_named_with_its_place(engine: ModuleType, tiny: Tiny, load: Any) -> None:
    with pytest.raises(EngineError, match=r": expected ids in \[0, 314\), .* at position 2"):
        engine.cmp_prefill(load(tiny()), [1, 2, 314], 1)


def test_hooks_in_the_wrong_order_say_what_to_call(engine: ModuleType, tiny: Tiny, load: Any) -> None:
    session = load(tiny())
    with pytest.raises(EngineError, match="call cmp_prefill first"):
        next(engine.cmp_decode(session, 1))
    with pytest.raises(EngineError, match="at least one token"):
        engine.cmp_prefill(session, [], 1)
    engine.cmp_prefill(session, PROMPT[:5], 1)
    with pytest.raises(EngineError, match="it holds 5 tokens; call cmp_reset first"):
        engine.cmp_prefill(session, PROMPT[:5], 1)
    engine.cmp_unload(session)
    with pytest.raises(EngineError, match="it was unloaded; call cmp_load again"):
        engine.cmp_reset(session)


# Tiny llama: 2 layers x 2 KV heads x 16 elements x 4 bytes, keys and values.
@pytest.mark.parametrize("length", [1, 50])
def test_kv_cache_bytes_are_those_of_the_tokens_in_the_cache(
    length: int, engine: ModuleType, tiny: Tiny, load: Any, generate: Any
) -> None:
    session = load(tiny())
    assert engine.cmp_metrics(session)["kv_cache_bytes"] == 0
    generate(session, PROMPT[:length], 4)
    # The last token of an answer is never run.
    assert engine.cmp_metrics(session)["kv_cache_bytes"] == 512 * (length + 3)


def test_a_tied_head_is_in_memory_once(engine: ModuleType, tiny: Tiny, load: Any) -> None:
    model = tiny("qwen2")
    tensors = read_gguf(model.path).tensors
    assert "output.weight" not in tensors
    assert engine.cmp_metrics(load(model))["weights_bytes"] == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.model
def test_pieces_of_a_trained_models_prompt_give_the_logits_of_the_whole(engine: ModuleType, load: Any) -> None:
    from enginecmp.models.store import resolve

    model = resolve("smollm2-135m-instruct:f32", fetch=True)
    prompt = [504, 3575, 282, 4649, 314, 7042, 30, 216]
    whole = engine.cmp_score(load(model), prompt)
    steps = engine.cmp_score(load(model, extra={"prompt_chunk": "1"}), prompt)
    assert divergence(float64.logits(model.path, prompt), whole).mean_kl < 1e-8
    np.testing.assert_allclose(steps, whole, atol=1e-4, rtol=0)
