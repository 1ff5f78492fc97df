"""What an engine computes, held against a float64 forward pass: every architecture and tensor type that it names."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp.gate.divergence import divergence, exact_threshold
from enginecmp.models.synth_shapes import LLAMA32_ROPE, SHAPES
from enginecmp.plugins.plugin import Plugin
from enginecmp.prompts import PromptSet
from enginecmp.testing import float64
from enginecmp.testing.conftest import Load, Subject, Tiny
from enginecmp.testing.test_conformance import failure_of, generate, scored
from enginecmp.testing.tiny_models import ARCHITECTURES, QUANTIZATIONS, Fields, changed_model
from enginecmp.types import NO_ID, ModelInfo

QUANTIZED_THRESHOLD = 2e-2
"""Largest mean KL, in nats, where activations are rounded to 8 bits as well: that of `cmp run`'s gate."""

# What a file may ask for beside its shape; rotary frequencies in a tensor of their own are llama's alone.
ASKED_FOR: dict[str, tuple[str, Fields]] = {
    "rope.freq_base": ("llama", {"llama.rope.freq_base": ("FLOAT32", 500.0)}),
    "layer_norm_rms_epsilon": ("llama", {"llama.attention.layer_norm_rms_epsilon": ("FLOAT32", 0.05)}),
    "rope.dimension_count": ("llama", {"llama.rope.dimension_count": ("UINT32", 8)}),
    "rope.scaling linear": (
        "llama",
        {"llama.rope.scaling.type": ("STRING", "linear"), "llama.rope.scaling.factor": ("FLOAT32", 4.0)},
    ),
    "rope_freqs": ("llama", {}),
    "qwen2 rope.freq_base": ("qwen2", {"qwen2.rope.freq_base": ("FLOAT32", 500.0)}),
    "sliding_window": ("phi3", {"phi3.attention.sliding_window": ("UINT32", 16)}),
}


@pytest.fixture(autouse=True)
def _computes(subject: Subject) -> None:
    if subject.plugin.name == "fake":
        pytest.skip("the fake engine computes nothing")


def prompt_for(model: ModelInfo) -> tuple[int, ...]:
    """Return 40 ids whose every beginning reads back, for engines that take text."""
    return PromptSet(model).score_ids(40)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_position_has_the_distribution_of_float64(architecture: str, tiny: Tiny, load: Load) -> None:
    model = tiny(architecture)
    prompt = prompt_for(model)
    logits = scored(load(model), prompt)
    assert divergence(float64.logits(model.path, prompt), logits).mean_kl < exact_threshold(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_request_takes_the_most_likely_tokens_of_float64(architecture: str, tiny: Tiny, load: Load) -> None:
    model = tiny(architecture)
    prompt = prompt_for(model)[:20]
    ids = generate(load(model), prompt, 16)["ids"]
    if NO_ID in ids:
        pytest.skip("the engine hands out text, not ids")
    rows = float64.logits(model.path, [*prompt, *ids[:-1]])[len(prompt) - 1 :]
    # Two logits may tie to rounding; the chosen one must not be clearly below the best.
    np.testing.assert_allclose(rows[np.arange(len(ids)), ids], rows.max(axis=1), atol=1e-3, rtol=0)
    assert len(set(ids)) > 1, "a model of random weights does not say one thing for ever"


@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_weights_of_every_type_are_the_numbers_that_the_file_means(kind: str, tiny: Tiny, load: Load) -> None:
    model = tiny("llama", kind)
    prompt = prompt_for(model)
    logits = scored(load(model), prompt)
    assert divergence(float64.logits(model.path, prompt), logits).mean_kl < QUANTIZED_THRESHOLD


@pytest.mark.parametrize("what", ASKED_FOR)
def test_what_a_file_asks_for_is_computed_or_refused(what: str, plugin: Plugin, tiny: Tiny, load: Load) -> None:
    assert plugin.info is not None
    if limits := [limit for limit in plugin.info.limits if what in limit]:
        pytest.skip(f"a declared limit: {limits[0]}")
    architecture, fields = ASKED_FOR[what]
    plain = tiny(architecture)
    shape = SHAPES["tiny-llama"]
    factors = {"rope_freqs.weight": np.array(LLAMA32_ROPE.factors(shape.rope_base, shape.head_dim), np.float32)}
    model = changed_model(plain, fields, factors if what == "rope_freqs" else {})
    prompt = prompt_for(model)
    wanted = float64.logits(model.path, prompt)
    assert divergence(float64.logits(plain.path, prompt), wanted).mean_kl > 1e-6
    found: list[NDArray[np.float32]] = []
    if refused := failure_of(lambda: found.append(scored(load(model), prompt))):
        # Where only the end of a long prompt would be wrong, a shorter one may pass.
        assert refused.kind in ("UnsupportedModel", "ContextOverflow"), refused
        return
    logits = found[0]
    assert divergence(wanted, logits).mean_kl < exact_threshold(model), (
        f"{what} is not followed: compute it, refuse the file, or name it in EngineInfo.limits"
    )
