"""What an engine with batching of its own must do: the same tokens whatever shares the batch, and clean refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from enginecmp.launch.launch import Launch, LaunchFailure
from enginecmp.testing.conftest import DEADLINES, Prompts
from enginecmp.testing.test_conformance import generate, logits_of
from enginecmp.types import NO_ID

TOKENS = 9


def batched(launch: Launch, prompts: Prompts, every: int = 0) -> list[list[int]]:
    """Return the ids of each prompt, submitted as soon as it is taken but at least `every` steps apart."""
    requests = [{"id": str(n), "token_ids": list(ids), "output_tokens": TOKENS} for n, ids in enumerate(prompts)]
    answer: Any = launch.call("batch", DEADLINES.decode_seconds, requests=requests, every=every)
    if answer is None:
        pytest.skip("the engine has no continuous batching of its own")
    return [answer[str(number)] for number in range(len(prompts))]


def require_as_likely(launch: Launch, prompt: tuple[int, ...], ids: list[int], wanted: list[int]) -> None:
    """Fail unless both are the same, or part where two tokens are equally likely to rounding."""
    place = next((n for n, (one, other) in enumerate(zip(ids, wanted, strict=True)) if one != other), None)
    if place is None:
        return
    logits = logits_of(launch, [*prompt, *wanted[:place]])
    assert logits is not None, f"token {place} is {ids[place]}, alone it is {wanted[place]}"
    np.testing.assert_allclose(logits[-1, ids[place]], logits[-1].max(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("every", [0, 2, 5])
def test_staggered_requests_give_the_same_tokens_as_single_ones(several: Launch, prompts: Prompts, every: int) -> None:
    asked = [*prompts, *prompts[::-1]]
    together = batched(several, asked, every)
    single = [generate(several, prompt, TOKENS)["ids"] for prompt in asked]
    if NO_ID in single[0]:
        pytest.skip("the engine hands out text, not ids")
    for prompt, ids, wanted in zip(asked, together, single, strict=True):
        require_as_likely(several, prompt, ids, wanted)


def test_a_request_that_cannot_fit_is_refused_and_the_batch_lives_on(several: Launch, prompts: Prompts) -> None:
    before = batched(several, prompts[:2])
    with pytest.raises(LaunchFailure) as refused:
        batched(several, [prompts[0], prompts[2] * 3])
    after = batched(several, prompts[:2])
    assert refused.value.kind == "ContextOverflow"
    assert after == before
