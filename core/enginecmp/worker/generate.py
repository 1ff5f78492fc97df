"""One request through an engine's hooks, token by token: the loop that every timed request goes through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from enginecmp.errors import EngineError
from enginecmp.types import GREEDY, Decoding


def generate(
    hook: Any,
    session: Any,
    token_ids: Sequence[int],
    output_tokens: int,
    mark: Callable[[int], None],
    end_ids: Collection[int] = (),
) -> int | None:
    """Run a prompt and generate tokens; whatever the engine raises passes through.

    Args:
        hook: hook relay of a plugin manager that holds exactly one plugin.
        session: from `cmp_load`, its KV cache empty.
        token_ids: the prompt.
        output_tokens: tokens to ask for, the first included.
        mark: called with each token id as soon as the engine hands it out; reads the clock first of all.
        end_ids: ids with which the request is over before it has all its tokens.

    Returns:
        Tokens in all, where the engine says so because its chunks can carry several; else None: as many as marked.
    """
    token = hook.cmp_prefill(session=session, token_ids=token_ids, output_tokens=output_tokens)
    mark(token)
    if output_tokens == 1 or token in end_ids:
        return None
    tokens = iter(hook.cmp_decode(session=session, n_tokens=output_tokens - 1))
    # One token more than asked for is taken, so that an engine that overruns is seen.
    for _ in range(output_tokens):
        try:
            token = next(tokens)
        except StopIteration as stop:
            return None if stop.value is None else 1 + int(stop.value)
        mark(token)
        if token in end_ids:
            break
    return None


def choose(hook: Any, session: Any, decoding: Decoding) -> None:
    """Tell an engine how the ids of its next request are chosen, unless that is as ever.

    Raises:
        EngineError: it does not take that in.
    """
    if decoding == GREEDY:
        return
    if not hook.cmp_decoding.get_hookimpls():
        needed = ", ".join(sorted(decoding.needs))
        msg = f"expected cmp_decoding for {needed}, the engine has none; implement it, or do not offer them"
        raise EngineError(msg)
    hook.cmp_decoding(session=session, decoding=decoding)
