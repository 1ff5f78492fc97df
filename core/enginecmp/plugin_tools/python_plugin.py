"""What plugins share whose engine is a Python class that runs one request after the other.

The hooks that call its session are the same for all of them: a plugin imports them into its module, beside a
`cmp_engine`, a `cmp_probe` and a `cmp_load` of its own. Its session refuses wrong use by `check_prompt` and
`check_step`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from enginecmp.denoising import require_shares
from enginecmp.errors import ContextOverflow, EngineError
from enginecmp.hookspecs import hookimpl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PASS_CONTEXT = "load it with context_tokens={needed}"


class PythonSession(Protocol):
    """What the plugin's `cmp_load` returns."""

    def check_prompt(self, token_ids: Sequence[int], needed: int) -> None:
        """Refuse a prompt that cannot run, or after which the cache would not hold `needed` tokens."""

    def prefill(self, token_ids: Sequence[int]) -> int:
        """Run a prompt into the empty cache and return the first greedy id, the device done."""

    def step(self) -> int:
        """Feed the last id and return the next one, the device done."""

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position of a prompt, (T, vocabulary), and leave the cache empty."""

    def metrics(self) -> dict[str, float]:
        """Return what the engine measures of itself."""

    def reset(self) -> None:
        """Empty the KV cache."""

    def close(self) -> None:
        """Free weights and cache."""


def check_prompt(
    engine: str,
    token_ids: Sequence[int],
    needed: int,
    *,
    vocabulary: int,
    limit: int,
    fix: str = PASS_CONTEXT,
) -> None:
    """Refuse a prompt that is empty, names ids that do not exist, or does not fit.

    Args:
        engine: its name, for errors.
        token_ids: the prompt.
        needed: tokens that the cache will hold in the end.
        vocabulary: number of token ids.
        limit: most tokens that the cache may hold.
        fix: what to do when that is not enough; "{needed}" becomes the number of tokens.

    Raises:
        ContextOverflow: `needed` is more than the limit.
        EngineError: no ids, or ids outside the vocabulary.
    """
    if not token_ids:
        msg = f"{engine}: expected a prompt of at least 1 token, got an empty one; pass token ids"
        raise EngineError(msg)
    # Out of range, CUDA's embedding would stop the whole process at some later call.
    if min(token_ids) < 0 or max(token_ids) >= vocabulary:
        msg = (
            f"{engine}: expected token ids in [0, {vocabulary}), got {min(token_ids)} to {max(token_ids)}; "
            "tokenize the prompt with this model's own tokenizer"
        )
        raise EngineError(msg)
    if needed > limit:
        msg = (
            f"{engine}: prompt has {len(token_ids)} tokens and the request needs {needed}, the context holds "
            f"{limit}; {fix.format(needed=needed)}"
        )
        raise ContextOverflow(msg)


def check_denoising(
    engine: str,
    token_ids: Sequence[Sequence[int]],
    output_tokens: int,
    steps: int,
    block_tokens: int,
    *,
    vocabulary: int,
    limit: int,
    fix: str = PASS_CONTEXT,
) -> None:
    """Refuse what cannot be denoised: arguments as of `cmp_denoise` and `check_prompt`.

    Raises:
        ContextOverflow: a prompt and its output are more than the limit.
        EngineError: see `enginecmp.denoising.require_shares` and `check_prompt`.
    """
    require_shares(engine, token_ids, output_tokens, steps, block_tokens)
    for prompt in token_ids:
        check_prompt(engine, prompt, len(prompt) + output_tokens, vocabulary=vocabulary, limit=limit, fix=fix)


def check_step(engine: str, *, prefilled: bool, past: int, limit: int, fix: str = PASS_CONTEXT) -> None:
    """Refuse a step without a prompt before it, or into a full cache.

    Args:
        engine: its name, for errors.
        prefilled: there was a prompt.
        past: tokens in the cache.
        limit: most tokens that the cache may hold.
        fix: as for `check_prompt`.

    Raises:
        EngineError: there was no prefill.
        ContextOverflow: the cache is full.
    """
    if not prefilled:
        msg = f"{engine}: expected a prefilled prompt, the KV cache is empty; call cmp_prefill before cmp_decode"
        raise EngineError(msg)
    if past >= limit:
        needed = past + 1
        msg = (
            f"{engine}: the next token would be number {needed}, the context holds {limit}; {fix.format(needed=needed)}"
        )
        raise ContextOverflow(msg)


@hookimpl
def cmp_prefill(session: PythonSession, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt in one forward pass and return the first greedy id, the device done."""
    session.check_prompt(token_ids, len(token_ids) + output_tokens - 1)
    return session.prefill(token_ids)


@hookimpl
def cmp_decode(session: PythonSession, n_tokens: int) -> Iterator[int]:
    """Yield the next greedy ids, one forward pass each, the device done at every yield."""
    for _ in range(n_tokens):
        yield session.step()


@hookimpl
def cmp_score(session: PythonSession, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return raw logits at every position, (T, vocabulary), float32."""
    session.check_prompt(token_ids, len(token_ids))
    return session.score(token_ids)


@hookimpl
def cmp_metrics(session: PythonSession) -> Mapping[str, float]:
    """Return what the engine measures of itself."""
    return session.metrics()


@hookimpl
def cmp_reset(session: PythonSession) -> None:
    """Empty the KV cache."""
    session.reset()


@hookimpl
def cmp_unload(session: PythonSession) -> None:
    """Free weights and cache."""
    session.close()
