"""The worker's half: one call makes the texts of a cell with the engine's hooks; every forward pass is a yield."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from enginecmp import EngineError
from enginecmp.models.diffusion import AUTOREGRESSIVE as ARCHITECTURES
from enginecmp_diffusion.variant import DENOISE

Commit = list[int]
"""What a forward pass committed: sequence, position and id of one token after the other, in one flat list."""


def drive(hook: Any, session: Any, parameters: Mapping[str, Any]) -> Callable[[], Iterator[Commit]] | None:
    """Return a call that makes texts by denoising, or by one token after the other; see `docs/measures.md`.

    Args:
        hook: calls the engine's hooks.
        session: from `cmp_load`.
        parameters: as `enginecmp_diffusion.judge.TextJudge.question` makes them.

    Returns:
        The call; None where the engine does not denoise.

    Raises:
        EngineError: the model is none of diffusion.
    """
    if not hook.cmp_denoise.get_hookimpls():
        return None
    if parameters["architecture"] not in ARCHITECTURES:
        msg = (
            f"expected a diffusion model ({', '.join(ARCHITECTURES)}), got one of {parameters['architecture']}; make "
            "one and name it with --model: cmp model synth --like diffusion-small -o diffusion-small.gguf"
        )
        raise EngineError(msg)
    prompts: list[list[int]] = parameters["prompts"]
    output_tokens: int = parameters["output_tokens"]

    def denoise() -> Iterator[Commit]:
        hook.cmp_reset(session=session)
        found = hook.cmp_denoise(
            session=session,
            token_ids=prompts,
            output_tokens=output_tokens,
            steps=parameters["steps"],
            block_tokens=parameters["block_tokens"],
        )
        for step in found:
            yield [number for place in step for number in place]

    def generate() -> Iterator[Commit]:
        hook.cmp_reset(session=session)
        (prompt,) = prompts
        at = len(prompt)
        yield [0, at, hook.cmp_prefill(session=session, token_ids=prompt, output_tokens=output_tokens)]
        if output_tokens > 1:
            for token in hook.cmp_decode(session=session, n_tokens=output_tokens - 1):
                at += 1
                yield [0, at, token]

    return denoise if parameters["decoding"] == DENOISE else generate
