"""One request through an engine's hooks, token by token: the loop that every timed request goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def generate(
    hook: Any, session: Any, token_ids: Sequence[int], output_tokens: int, mark: Callable[[int], None]
) -> int | None:
    """Run a prompt and generate tokens; whatever the engine raises passes through.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        session: from `cmp_load`, its KV cache empty.
        token_ids: the prompt.
        output_tokens: tokens to ask for, the first included.
        mark: called with each token id as soon as the engine hands it out; reads the clock first of all.

    Returns:
        Tokens in all, where the engine says so because its chunks can carry several; else None: as many as marked.
    """
    mark(hook.cmp_prefill(session=session, token_ids=token_ids, output_tokens=output_tokens))
    if output_tokens == 1:
        return None
    tokens = iter(hook.cmp_decode(session=session, n_tokens=output_tokens - 1))
    # One token more than asked for is taken, so that an engine that overruns is seen.
    for _ in range(output_tokens):
        try:
            token = next(tokens)
        except StopIteration as stop:
            return None if stop.value is None else 1 + int(stop.value)
        mark(token)
    return None
