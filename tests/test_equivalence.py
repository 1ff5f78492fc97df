from __future__ import annotations

import msgspec
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from enginecmp.errors import CmpError
from enginecmp.gate.divergence import divergence, exact_threshold
from enginecmp.types import ModelInfo

RNG = np.random.default_rng(11)
LOGITS = RNG.normal(0, 4, (7, 50)).astype(np.float32)


def test_kl_is_that_of_scipy() -> None:
    other = LOGITS + RNG.normal(0, 0.3, LOGITS.shape).astype(np.float32)
    p, q = softmax(LOGITS.astype(np.float64), axis=1), softmax(other.astype(np.float64), axis=1)
    expected = rel_entr(p, q).sum(axis=1)
    found = divergence(LOGITS, other)
    assert found.mean_kl == pytest.approx(expected.mean(), rel=1e-9)
    assert found.max_kl == pytest.approx(expected.max(), rel=1e-9)
    assert found.top1 == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    assert found.positions == 7


def test_kl_is_from_the_reference_to_the_engine_and_not_back() -> None:
    # KL((.9, .1) || (.5, .5)) = .9 ln 1.8 + .1 ln .2
    reference = np.log(np.array([[0.9, 0.1]], dtype=np.float32))
    engine = np.log(np.array([[0.5, 0.5]], dtype=np.float32))
    assert divergence(reference, engine).mean_kl == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2), rel=1e-6)


def test_a_constant_per_row_does_not_matter() -> None:
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    assert divergence(LOGITS, log_probabilities.astype(np.float32)).mean_kl < 1e-10


def test_identical_logits_differ_by_nothing() -> None:
    found = divergence(LOGITS, LOGITS)
    assert (found.mean_kl, found.max_kl, found.top1) == (0.0, 0.0, 1.0)


def test_the_gate_can_see_a_change_of_one_part_in_a_thousand() -> None:
    assert divergence(LOGITS, LOGITS * np.float32(1.001)).mean_kl > 1e-8


def test_other_shapes_are_refused() -> None:
    with pytest.raises(CmpError, match=r"expected logits of shape \(7, 50\), got \(7, 49\)"):
        divergence(LOGITS, LOGITS[:, :49])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_with_their_position(bad: float) -> None:
    broken = LOGITS.copy()
    broken[4, 2] = bad
    with pytest.raises(CmpError, match="position 4"):
        divergence(LOGITS, broken)


def test_minus_infinity_is_a_probability_of_zero_and_not_an_error() -> None:
    masked = LOGITS.copy()
    masked[:, 3] = -np.inf
    assert divergence(masked, masked).mean_kl == 0.0
    assert divergence(masked, LOGITS).mean_kl > 0.0


def test_what_the_reference_allows_and_the_engine_excludes_is_infinitely_far() -> None:
    masked = LOGITS.copy()
    masked[5, 3] = -np.inf
    assert divergence(LOGITS, masked).mean_kl == np.inf


def test_the_threshold_of_a_family_whose_kernels_round(tiny: ModelInfo) -> None:
    assert exact_threshold(tiny) == 1e-8
    assert exact_threshold(msgspec.structs.replace(tiny, architecture="gpt2")) == 1e-6
