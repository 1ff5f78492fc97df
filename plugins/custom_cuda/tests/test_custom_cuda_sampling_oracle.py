"""The definition of sampling: published random numbers, and the distributions that are asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
from custom_cuda_oracle import sampling
from hypothesis import given, settings
from hypothesis import strategies as st

LOGITS = (np.random.default_rng(2).standard_normal(40) * 2).astype(np.float32)


# Random123 1.14.0, tests/kat_vectors, the lines "philox4x32 10": counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_random_words_are_those_of_random123(counter: str, key: str, result: str) -> None:
    words = [[int(word, 16) for word in each.split()] for each in (counter, key, result)]
    assert sampling.philox(words[0], words[1]).tolist() == words[2]
    assert sampling.philox([words[0]] * 3, words[1]).tolist() == [words[2]] * 3


def test_an_ids_uniform_comes_from_its_own_counter() -> None:
    seed, step = 0xA409382212345678, 77
    found = sampling.uniforms(seed, step, 11)
    for token in (0, 3, 4, 10):
        word = sampling.philox([token // 4, step, 0, 0], [0x12345678, 0xA4093822])[token % 4]
        # The word as a float32 (24 bits), 2**-33 more, in float32: at most half of its last place from the real number.
        assert found[token] == pytest.approx((int(word) + 0.5) / 2**32, rel=2**-23)
    assert found.dtype == np.float32
    assert len(set(found.tolist())) == 11


def test_uniforms_are_uniform_and_never_0_or_1(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sampling.uniforms(5, 0, 20_000)
    assert scipy.stats.kstest(found, "uniform").pvalue > 1e-3
    words = np.array([[0, 1, 0xFFFFFFFF, 0xFFFFFF7F]], np.uint32)
    monkeypatch.setattr(sampling, "philox", lambda counter, key: words)
    below_one = 1 - 2.0**-24
    assert sampling.uniforms(0, 0, 4).tolist() == [2.0**-33, 3 * 2.0**-33, below_one, below_one]
    assert np.isfinite(sampling.gumbel(sampling.uniforms(0, 0, 4))).all()


def test_noise_has_gumbels_distribution() -> None:
    assert scipy.stats.kstest(sampling.gumbel(sampling.uniforms(9, 3, 20_000)), "gumbel_r").pvalue > 1e-3


def test_steps_and_seeds_have_noise_of_their_own() -> None:
    base = sampling.uniforms(1, 0, 1000)
    for other in (sampling.uniforms(1, 1, 1000), sampling.uniforms(2, 0, 1000), sampling.uniforms(1 << 32, 0, 1000)):
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.15
        assert (base != other).mean() > 0.99


def test_the_greedy_choice_is_the_lowest_of_the_largest() -> None:
    assert sampling.greedy([1.0, 3.0, 2.0, 3.0]) == 1
    assert sampling.sample([1.0, 3.0, 2.0, 3.0], temperature=0, top_k=0, top_p=1, seed=4, step=0) == 1


def test_candidates_by_hand() -> None:
    scores = np.log([0.1, 0.4, 0.2, 0.2, 0.1])

    def kept(top_k: int, top_p: float) -> list[int]:
        return np.flatnonzero(sampling.candidates(scores, top_k, top_p)).tolist()

    assert kept(0, 1.0) == [0, 1, 2, 3, 4]
    assert kept(2, 1.0) == [1, 2]  # of two that are alike the lower id stays
    assert kept(9, 1.0) == [0, 1, 2, 3, 4]
    assert kept(0, 0.5) == [1, 2]  # 0.4 is not enough
    assert kept(0, 0.39) == [1]
    assert kept(0, 0.95) == [0, 1, 2, 3, 4]
    assert kept(0, 0.0) == [1]
    # Of four that are alike two have exactly a half.
    assert np.flatnonzero(sampling.candidates([1.0] * 4, 0, 0.5)).tolist() == [0, 1]
    # After top-k the two have 2/3 and 1/3.
    assert kept(2, 0.66) == [1]
    assert kept(2, 0.67) == [1, 2]


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**31))
@settings(deadline=None)
def test_candidates_are_the_fewest_most_likely_that_reach_top_p(size: int, top_k: int, top_p: float, seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal(size) * 3
    kept = sampling.candidates(scores, top_k, top_p)
    n = int(kept.sum())
    assert n >= 1
    assert set(np.flatnonzero(kept)) == set(np.argsort(-scores)[:n])
    allowed = np.sort(np.exp(scores - scores.max()))[::-1][: top_k or None]
    shares = np.cumsum(allowed / allowed.sum())
    if top_p == 1:
        assert n == len(allowed)
    else:
        assert n == len(allowed) or shares[n - 1] >= top_p - 1e-9
        assert n == 1 or shares[n - 2] < top_p + 1e-9


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.5, 7, 1.0), (1.0, 0, 0.8), (0.9, 12, 0.7)]
)
def test_draws_follow_the_distribution_that_is_left(temperature: float, top_k: int, top_p: float) -> None:
    draws = 3000
    settings: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": 11}
    drawn = np.bincount([sampling.sample(LOGITS, **settings, step=step) for step in range(draws)], minlength=40)
    chances = np.exp(LOGITS.astype(np.float64) / temperature)
    chances[~sampling.candidates(LOGITS / np.float32(temperature), top_k, top_p)] = 0
    chances /= chances.sum()
    assert drawn[chances == 0].sum() == 0
    frequent = chances * draws >= 5
    observed = [*drawn[frequent], drawn[~frequent].sum()]
    expected = [*(chances[frequent] * draws), chances[~frequent].sum() * draws]
    if expected[-1] < 1e-9:
        observed, expected = observed[:-1], expected[:-1]
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_same_seed_and_step_draw_the_same_id() -> None:
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    first = [sampling.sample(LOGITS, **settings, seed=3, step=step) for step in range(50)]
    assert first == [sampling.sample(LOGITS, **settings, seed=3, step=step) for step in range(50)]
    assert first != [sampling.sample(LOGITS, **settings, seed=4, step=step) for step in range(50)]
