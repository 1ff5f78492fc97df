"""A driver for the conformance suite: calls `cmp_denoise` in the engine's worker, once for every call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def drive(hook: Any, session: Any, parameters: Mapping[str, Any]) -> Callable[[], Iterator[list[int]]] | None:
    """Return a call that yields what every step commits, as one flat list; None where the engine has no `cmp_denoise`.

    Args:
        hook: calls the engine's hooks.
        session: from `cmp_load`.
        parameters: arguments of `cmp_denoise`.
    """
    if not hook.cmp_denoise.get_hookimpls():
        return None

    def call() -> Iterator[list[int]]:
        hook.cmp_reset(session=session)
        for step in hook.cmp_denoise(session=session, **parameters):
            yield [number for place in step for number in place]

    return call
