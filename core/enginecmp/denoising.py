"""Masked diffusion: which positions a denoising step commits, the same for every engine that computes by itself.

The output begins as mask tokens. Every step predicts all that are still masked in the block under way and commits
those predicted with the most confidence; the others stay masked ("low-confidence remasking", Nie et al. 2025,
arXiv:2502.09992, section 2.4, with blocks from left to right as in its appendix B.4). Nothing is drawn at random: the
likeliest id is taken, and of positions predicted with the same confidence the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from enginecmp.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ids: TypeAlias = NDArray[np.int64]
    Predict: TypeAlias = Callable[[Ids, Ids, Ids], tuple[NDArray[Any], NDArray[Any]]]
    """(ids (B, S), sequences (M,), positions (M,)) → likeliest ids (M,) and the logarithm of their probability (M,).

    The mask's own id is never predicted: it counts as impossible."""

Committed: TypeAlias = list[tuple[int, int, int]]
"""(sequence, position, id) of what a step committed; positions count from the prompt's beginning."""


def require_shares(
    engine: str, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> None:
    """Refuse prompts that cannot be denoised together, and steps and blocks that do not share out the output evenly.

    Args:
        engine: its name, for errors.
        token_ids: the prompts, one a sequence.
        output_tokens: masked positions behind each of them.
        steps: forward passes in all.
        block_tokens: positions that are denoised together, from left to right.

    Raises:
        EngineError: no prompts, prompts of different lengths, or numbers that do not divide each other.
    """
    if len({len(prompt) for prompt in token_ids}) != 1:
        lengths = sorted({len(prompt) for prompt in token_ids})
        msg = f"{engine}: expected prompts of one length to denoise together, got lengths {lengths}; send them alone"
        raise EngineError(msg)
    if block_tokens < 1 or output_tokens < 1 or output_tokens % block_tokens:
        msg = (
            f"{engine}: expected output_tokens to be whole blocks, got {output_tokens} in blocks of {block_tokens}; "
            "choose a block length that divides it"
        )
        raise EngineError(msg)
    blocks = output_tokens // block_tokens
    if steps % blocks or not blocks <= steps <= output_tokens:
        msg = (
            f"{engine}: expected steps to be a multiple of {blocks} (the blocks) and at most {output_tokens} (the "
            f"tokens), got {steps}; choose other steps or blocks"
        )
        raise EngineError(msg)


def denoise(
    predict: Predict, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int, mask: int
) -> Iterator[Committed]:
    """Yield what each step commits, right after its forward pass.

    Args:
        predict: runs the model once over all sequences.
        token_ids: B prompts of T ids, as `require_shares` wants them.
        output_tokens: masked positions behind each prompt.
        steps: forward passes in all.
        block_tokens: positions that are denoised together.
        mask: id of the mask token.
    """
    import numpy as np

    prompt_tokens = len(token_ids[0])
    ids = np.full((len(token_ids), prompt_tokens + output_tokens), mask, np.int64)  # (B, T + output)
    ids[:, :prompt_tokens] = token_ids
    masked = np.zeros(ids.shape, bool)
    blocks = output_tokens // block_tokens
    for block in range(blocks):
        start = prompt_tokens + block * block_tokens
        masked[:, start : start + block_tokens] = True
        for count in shares(block_tokens, steps // blocks):
            sequences, positions = np.nonzero(masked)  # (M,) each, by sequence, then by position
            found, confidence = predict(ids, sequences, positions)
            step: Committed = []
            for sequence in range(len(ids)):
                own = np.flatnonzero(sequences == sequence)
                # Stable: of equal confidences the first position.
                for chosen in own[np.argsort(-confidence[own], kind="stable")[:count]]:
                    step.append((sequence, int(positions[chosen]), int(found[chosen])))
            for sequence, position, token in step:
                ids[sequence, position] = token
                masked[sequence, position] = False
            yield step


def shares(tokens: int, steps: int) -> list[int]:
    """Return how many positions each step of a block commits: as evenly as can be, the first ones one more."""
    return [tokens // steps + (number < tokens % steps) for number in range(steps)]


def likeliest(logits: NDArray[np.floating], mask: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the likeliest ids and the logarithm of their probability, the mask's own id left out.

    Args:
        logits: (M, vocabulary); the mask's column is overwritten.
        mask: id of the mask token.
    """
    import numpy as np

    logits[:, mask] = -np.inf
    best = logits.argmax(axis=1)
    # max - log(sum(exp)) with the largest taken out first, so that nothing overflows.
    shifted = logits - logits[np.arange(len(best)), best][:, None]
    return best, -np.log(np.exp(shifted, out=shifted).sum(axis=1, dtype=np.float64))
