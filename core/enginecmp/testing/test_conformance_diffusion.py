"""What an engine makes of a diffusion model: `pytest --pyargs enginecmp.testing --engine NAME`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from enginecmp.denoising import shares
from enginecmp.gate.divergence import divergence, exact_threshold
from enginecmp.launch.launch import Launch
from enginecmp.models.diffusion import mask_of
from enginecmp.models.gguf_file import read_gguf
from enginecmp.prompts import PromptSet
from enginecmp.testing import float64
from enginecmp.testing.conftest import DEADLINES, Load, Subject, Tiny
from enginecmp.testing.test_conformance import scored
from enginecmp.types import ModelInfo

ARCHITECTURES = ("llada", "dream")
OUTPUT = 12
Steps = list[list[tuple[int, int, int]]]


def mask_id(model: ModelInfo) -> int:
    mask = mask_of(read_gguf(model.path))
    assert mask is not None
    return mask


def computes(subject: Subject) -> None:
    if subject.plugin.name == "fake":
        pytest.skip("the fake engine computes nothing")


def denoised(launch: Launch, prompts: Sequence[Sequence[int]], steps: int, block_tokens: int) -> Steps:
    """Return what every step commits, (sequence, position, id) each."""
    parameters = {
        "token_ids": [list(prompt) for prompt in prompts],
        "output_tokens": OUTPUT,
        "steps": steps,
        "block_tokens": block_tokens,
    }
    prepared = launch.call(
        "prepare_operation",
        DEADLINES.prefill_seconds,
        kind="denoise",
        parameters=parameters,
        least_ns=1000,
        driver="enginecmp.testing.denoised:drive",
    )
    if prepared is None:
        pytest.skip("the engine has no cmp_denoise")
    answer = launch.call("operation", DEADLINES.decode_seconds, calls=1)["result"]
    return [list(zip(step[::3], step[1::3], step[2::3], strict=True)) for step in answer]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_masked_has_the_distribution_of_float64(
    architecture: str, subject: Subject, tiny: Tiny, load: Load
) -> None:
    computes(subject)
    model = tiny(architecture)
    ids = list(PromptSet(model).take(40, key=1, seed=1))
    masked = [3, *range(10, 20), 39]
    for position in masked:
        ids[position] = mask_id(model)
    logits = scored(load(model), tuple(ids))
    assert divergence(float64.logits(model.path, ids)[masked], logits[masked]).mean_kl < exact_threshold(model)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("steps", "block_tokens"), [(1, 12), (5, 12), (12, 12), (4, 6)])
def test_every_position_is_committed_once_in_as_many_steps_as_were_asked_for(
    architecture: str, steps: int, block_tokens: int, tiny: Tiny, load: Load
) -> None:
    model = tiny(architecture)
    prompt = PromptSet(model).take(9, key=1, seed=1)
    found = denoised(load(model), [prompt], steps, block_tokens)
    blocks = OUTPUT // block_tokens
    assert [len(step) for step in found] == shares(block_tokens, steps // blocks) * blocks
    places = [position for step in found for _, position, _ in step]
    assert sorted(places) == list(range(9, 9 + OUTPUT))
    # Block after block from left to right.
    assert [(position - 9) // block_tokens for position in places] == sorted((p - 9) // block_tokens for p in places)
    ids = [token for step in found for _, _, token in step]
    assert 0 <= min(ids) <= max(ids) < model.vocabulary
    assert mask_id(model) not in ids


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_denoising_twice_commits_the_same(architecture: str, tiny: Tiny, load: Load) -> None:
    model = tiny(architecture)
    launch, prompt = load(model), PromptSet(model).take(9, key=1, seed=1)
    first = denoised(launch, [prompt], 4, 12)
    denoised(launch, [prompt[::-1]], 4, 12)  # nothing of another text is left
    assert denoised(launch, [prompt], 4, 12) == first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_commits_what_float64_is_surest_of(architecture: str, subject: Subject, tiny: Tiny, load: Load) -> None:
    computes(subject)
    model = tiny(architecture)
    prompt, mask = PromptSet(model).take(9, key=1, seed=1), mask_id(model)
    ids = [*prompt, *[mask] * OUTPUT]
    for step in denoised(load(model), [prompt], 4, 12):
        rows = float64.logits(model.path, ids)
        rows[:, mask] = -np.inf
        rows -= np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) + rows.max(
            axis=1, keepdims=True
        )
        left = {position for position, token in enumerate(ids) if token == mask}
        for _, position, token in step:
            # Two may tie to rounding; what is committed must not be clearly below the best.
            assert rows[position, token] > rows[position].max() - 1e-3
        committed = {position for _, position, _ in step}
        surest_left = max((rows[position].max() for position in left - committed), default=-np.inf)
        assert min(rows[position].max() for position in committed) > surest_left - 1e-3
        for _, position, token in step:
            ids[position] = token
