"""Whole models, as the hooks drive them, against the float64 reference: every position, prompts and steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from custom_cuda_oracle import reference
from custom_cuda_sessions import mean_kl

from enginecmp import read_gguf
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_custom_cuda import cmp_score
from enginecmp_custom_cuda.config import ARCHITECTURES

EXACT, QUANTIZED = 1e-8, 2e-2
"""Largest mean KL in nats that the gate lets pass, on a float32 file and on others."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_exact_numerics_compute_the_distribution_of_float64(
    architecture: str, tiny: Any, load: Any, token_ids: list[int]
) -> None:
    model = tiny(architecture)
    wanted = reference.logits(read_gguf(model.path), token_ids, 256)
    # 90 positions: 45 as a prompt, 45 as steps, across a page's end.
    scores = cmp_score(load(model), token_ids)
    assert scores.shape == wanted.shape == (90, model.vocabulary)
    assert scores.dtype == np.float32
    assert mean_kl(wanted, scores) < EXACT
    np.testing.assert_allclose(scores, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("extra", [{"prefill_chunk": "7"}, {"decoder": "persistent"}])
def test_the_other_ways_compute_it_too(extra: dict[str, str], tiny: Any, load: Any, token_ids: list[int]) -> None:
    model = tiny()
    wanted = reference.logits(read_gguf(model.path), token_ids, 256)
    assert mean_kl(wanted, cmp_score(load(model, extra=extra), token_ids)) < EXACT


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_default_numerics_are_close_to_the_files_own_values(
    kind: str, tiny: Any, load: Any, token_ids: list[int]
) -> None:
    model = tiny("llama", kind)
    wanted = reference.logits(read_gguf(model.path), token_ids, 256)
    default = mean_kl(wanted, cmp_score(load(model, numerics="default"), token_ids))
    exact = mean_kl(wanted, cmp_score(load(model), token_ids))
    # The matrices are the same: what is left is activations in 8 or 16 bits, and keys and values in 16.
    assert exact < EXACT
    assert 10 * exact < default < QUANTIZED


def test_prompts_before_ampere_are_computed_in_float32(
    tiny: Any, load: Any, token_ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("enginecmp_custom_cuda.engine.prefill.layers.TENSOR_CORE_CAPABILITY", (99, 0))
    model = tiny("llama", "Q8_0")
    session = load(model, numerics="default")
    loaded = {module.name for module in session.device.modules.values()}
    assert {"flash_f32.cu", "gemm_f32.cu"} <= loaded
    assert not {"flash_f16.cu", "gemm_mma.cu"} & loaded
    wanted = reference.logits(read_gguf(model.path), token_ids, 256)[:45]
    assert mean_kl(wanted, cmp_score(session, token_ids)[:45]) < 1e-5  # the cache alone is rounded


def test_the_frequency_factors_of_llama_3_are_applied(load: Any, token_ids: list[int], tmp_path: Path) -> None:
    model = tiny_model(tmp_path, llama3_rope=True)
    wanted = reference.logits(read_gguf(model.path), token_ids, 256)
    assert mean_kl(wanted, cmp_score(load(model), token_ids)) < EXACT


TRAINED_IDS = [504, 3575, 282, 4649]  # "The capital of France": two as a prompt, two as steps


@pytest.fixture(scope="module")
def trained() -> Any:
    """What the embedded model's float32 file says, (4, vocabulary)."""
    from enginecmp.models.store import resolve

    exact = resolve("smollm2-135m-instruct:f32", fetch=True)
    return reference.logits(read_gguf(exact.path), TRAINED_IDS, 16)


@pytest.mark.model
@pytest.mark.parametrize(
    ("quantization", "numerics", "limit"), [("f32", "exact", EXACT), ("q8_0", "default", QUANTIZED)]
)
def test_a_trained_model_is_computed_as_the_float32_file_says(
    quantization: str, numerics: str, limit: float, load: Any, trained: Any
) -> None:
    from enginecmp.models.store import resolve

    model = resolve(f"smollm2-135m-instruct:{quantization}", fetch=True)
    assert mean_kl(trained, cmp_score(load(model, numerics=numerics, context_tokens=16), TRAINED_IDS)) < limit
