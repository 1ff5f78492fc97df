"""llama.cpp, as this plugin drives it, against a llama forward written out in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from enginecmp import ModelInfo
from enginecmp.gate.divergence import divergence
from enginecmp.testing import float64
from enginecmp_llamacpp import cmp_prefill, cmp_reset, cmp_score


def test_exact_numerics_compute_the_same_distribution_as_float64(tiny: ModelInfo, load: Any, token_ids: Any) -> None:
    reference = float64.logits(tiny.path, token_ids)
    logits = cmp_score(load(tiny), token_ids)
    assert logits.shape == reference.shape == (60, tiny.vocabulary)
    assert logits.dtype == np.float32
    assert divergence(reference, logits).mean_kl < 1e-8
    np.testing.assert_allclose(logits, reference, atol=1e-4, rtol=0)


def test_default_numerics_are_close_but_coarser_than_exact_ones(tiny: ModelInfo, load: Any, token_ids: Any) -> None:
    reference = float64.logits(tiny.path, token_ids)
    exact = divergence(reference, cmp_score(load(tiny), token_ids)).mean_kl
    default = divergence(reference, cmp_score(load(tiny, numerics="default"), token_ids)).mean_kl
    # Half precision keys and values: measured at 1e-6 on a real model, far above float32 and far below a nat.
    assert 100 * exact < default < 1e-4


def test_greedy_tokens_are_the_most_likely_ones_of_float64(tiny: ModelInfo, load: Any, token_ids: Any) -> None:
    reference = float64.logits(tiny.path, token_ids)
    session = load(tiny)
    for length in (1, 2, 31, 60):
        cmp_reset(session)
        assert cmp_prefill(session, token_ids[:length], 1) == reference[length - 1].argmax()
