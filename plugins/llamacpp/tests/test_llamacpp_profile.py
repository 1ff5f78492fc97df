"""Seconds per component: which node belongs to what, for how many tokens, and what is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from enginecmp import ContextOverflow, ModelInfo
from enginecmp_llamacpp import cmp_decode, cmp_prefill, cmp_profile, cmp_reset
from enginecmp_llamacpp.profile import component_of

ROPELESS = {"embedding", "norm", "attention", "ffn", "lm_head", "sampling", "other"}

# A layer as llama.cpp's graphs of llama, phi3 and gpt2 name it, with the operation and where it belongs.
LAYER = [
    ("embd", "GET_ROWS", "embedding"),
    ("norm-0", "RMS_NORM", "norm"),
    ("attn_norm-0", "MUL", "norm"),
    ("Qcur-0", "MUL_MAT", "attention"),
    ("Qcur-0", "ROPE", "rope"),
    ("Kcur-0", "MUL_MAT", "attention"),
    ("Kcur-0", "ROPE", "rope"),
    ("cache_k_l0 (view)", "SET_ROWS", "attention"),
    ("node_21", "FLASH_ATTN_EXT", "attention"),
    ("kqv_out-0", "RESHAPE", "attention"),
    ("node_22", "MUL_MAT", "attention"),
    ("ffn_inp-0", "ADD", "other"),
    ("norm-0", "RMS_NORM", "norm"),
    ("ffn_norm-0", "MUL", "norm"),
    ("ffn_gate-0", "MUL_MAT", "ffn"),
    ("ffn_swiglu-0", "SWIGLU", "ffn"),
    ("ffn_out-0", "MUL_MAT", "ffn"),
    ("l_out-0", "ADD", "other"),
    ("wqkv-1", "MUL_MAT", "attention"),
    ("kq_soft_max-1", "SOFT_MAX", "attention"),
    ("node_55", "GET_ROWS", "attention"),
    ("norm", "NORM", "norm"),
    ("result_norm", "MUL", "norm"),
    ("result_output", "MUL_MAT", "lm_head"),
]


def test_nodes_belong_to_the_component_that_computes_them() -> None:
    found = ["other"]
    for name, operation, _ in LAYER:
        found.append(component_of(name, operation, found[-1]))
    assert found[1:] == [component for _, _, component in LAYER]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gpt2"])
@pytest.mark.parametrize("numerics", ["default", "exact"])
def test_every_architecture_has_all_components(
    tiny_model: Callable[[str, str], ModelInfo], load: Any, token_ids: list[int], architecture: str, numerics: str
) -> None:
    session = load(tiny_model(architecture, "F32"), numerics=numerics)
    start = time.perf_counter()
    found = cmp_profile(session, token_ids, 3)
    wall_seconds = time.perf_counter() - start
    assert found is not None
    assert set(found) == ROPELESS | ({"rope"} if architecture != "gpt2" else set())
    assert all(seconds > 0 for seconds in found.values())
    assert sum(found.values()) < wall_seconds


def test_each_step_is_watched_once(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    cmp_profile(session, token_ids, 0)
    cmp_profile(session, token_ids, 4)
    plans = session._profiler._plans
    prompt, whole = plans[len(token_ids), 0], plans[len(token_ids), 4]
    assert len(whole.stops) == 5 * len(prompt.stops)
    assert whole.components == 5 * prompt.components
    # Neighbours that belong together are computed together.
    assert all(one != other for one, other in pairwise(prompt.components))
    assert sum(prompt.stops) == len(prompt.components) < len(prompt.stops)


def test_a_prompt_longer_than_a_batch_is_watched_to_its_end(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny, extra={"n_batch": "16", "n_ubatch": "8"})
    found = cmp_profile(session, token_ids, 1)
    assert found is not None
    assert set(found) == ROPELESS | {"rope"}
    assert cmp_profile(session, token_ids, 1) is not None


def test_requests_go_on_as_before_beside_a_profile(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    session = load(tiny)
    before = [cmp_prefill(session, token_ids, 8), *cmp_decode(session, 7)]
    cmp_profile(session, token_ids[:20], 5)
    cmp_reset(session)
    assert [cmp_prefill(session, token_ids, 8), *cmp_decode(session, 7)] == before


def test_a_profile_that_does_not_fit_is_refused(tiny: ModelInfo, load: Any, token_ids: list[int]) -> None:
    with pytest.raises(ContextOverflow):
        cmp_profile(load(tiny, context_tokens=64), token_ids, 5)
