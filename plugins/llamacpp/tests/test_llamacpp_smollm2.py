"""The same promises on real trained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginecmp import ModelInfo, Request
from enginecmp.models.store import resolve
from enginecmp_llamacpp import cmp_decode, cmp_metrics, cmp_prefill, cmp_reset, cmp_score, cmp_step, cmp_submit

pytestmark = pytest.mark.model

FRANCE = [504, 3575, 282, 4649, 314]  # "The capital of France is"
PARIS = 7042  # " Paris"


@pytest.fixture(scope="module")
def f32() -> ModelInfo:
    return resolve("smollm2-135m-instruct:f32", fetch=True)


@pytest.fixture(scope="module")
def q8_0() -> ModelInfo:
    return resolve("smollm2-135m-instruct:q8_0", fetch=True)


def test_generated_tokens_are_the_argmax_of_teacher_forced_scores(f32: ModelInfo, load: Any) -> None:
    session = load(f32)
    generated = [cmp_prefill(session, FRANCE, 16), *cmp_decode(session, 15)]
    assert generated[0] == PARIS
    cmp_reset(session)
    rows = cmp_score(session, FRANCE + generated[:-1])
    assert generated == rows[len(FRANCE) - 1 :].argmax(axis=1).tolist()


def test_requests_in_one_batch_generate_what_they_generate_alone(f32: ModelInfo, load: Any) -> None:
    session = load(f32, context_tokens=64, max_sequences=2)
    prompts = {"a": FRANCE, "b": FRANCE[:3], "c": FRANCE[::-1]}
    alone = {}
    for name, prompt in prompts.items():
        cmp_reset(session)
        alone[name] = [cmp_prefill(session, prompt, 6), *cmp_decode(session, 5)]
    cmp_reset(session)
    waiting = [Request(id=name, token_ids=prompt, output_tokens=6) for name, prompt in prompts.items()]
    batched: dict[str, list[int]] = {name: [] for name in prompts}
    while sum(map(len, batched.values())) < 18:
        while waiting and cmp_submit(session, waiting[0]):
            waiting.pop(0)
        for name, token in cmp_step(session):
            batched[name].append(token)
    assert batched == alone


def test_the_q8_0_file_knows_the_capital_and_goes_on_past_the_end_of_its_answer(q8_0: ModelInfo, load: Any) -> None:
    session = load(q8_0, numerics="default")
    assert cmp_prefill(session, FRANCE, 65) == PARIS
    assert len(list(cmp_decode(session, 64))) == 64
    # 30 layers x 3 KV heads x 64 elements, keys and values, float16, for 5 + 64 tokens.
    kv_cache_bytes = cmp_metrics(session)["kv_cache_bytes"]
    assert 1.0 <= kv_cache_bytes / (69 * 30 * 3 * 64 * 2 * 2) < 1.01


def test_the_files_agree_within_quantization(f32: ModelInfo, q8_0: ModelInfo, load: Any) -> None:
    ids = [*FRANCE, PARIS, *FRANCE[::-1], *range(1000, 1020)]
    exact, quantized = cmp_score(load(f32), ids), cmp_score(load(q8_0, numerics="default"), ids)
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (exact, quantized))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)  # (T,)
    assert kl.mean() < 2e-2
