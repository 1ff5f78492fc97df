"""Continuous batching of the fake engine: a step costs what it carries, and misbehaves where it is told to.

A step takes `decode_us`, `batch_us` more for every further request in it, and `prefill_us` for every token of the
prompts that came in since the last one; their first tokens come at its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from enginecmp.errors import ContextOverflow, EngineError
from enginecmp.types import Request

if TYPE_CHECKING:
    from enginecmp.testing.fake_engine import FakeSession


class _Running(msgspec.Struct):
    """One request in flight: its ids so far, the prompt's tokens still to be paid for, and how many it will give."""

    request: Request
    ids: list[int]
    unpaid: int
    gives: int
    given: int = 0


class FakeBatch:
    """The requests in flight.

    Args:
        session: whose tokens, time and faults these are.
    """

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self._running: dict[str, _Running] = {}

    def submit(self, request: Request) -> bool:
        """Take a request in; False while there are `max_sequences`."""
        session = self._session
        session.require(request.token_ids, request.output_tokens)
        if len(self._running) >= session.max_sequences:
            return False
        session.fault.maybe("submit")
        session.begin_request()
        gives = request.output_tokens - int(session.settings["short"]) + int(session.settings["long"])
        unpaid = 0 if session.cached(request.token_ids) else len(request.token_ids)
        self._running[request.id] = _Running(request, list(request.token_ids), unpaid, gives)
        return True

    def step(self) -> list[tuple[str, int]]:
        """Advance everybody by a token."""
        session, running = self._session, self._running
        if not running:
            return []
        session.fault.maybe("prefill")
        unpaid = sum(entry.unpaid for entry in running.values())
        each = session.number("decode_us") + (len(running) - 1) * session.number("batch_us")
        session.spend((each + unpaid * session.number("prefill_us")) / 1e6)
        pairs = []
        for name, entry in list(running.items()):
            session.fault.maybe("decode", entry.given)
            entry.unpaid = 0
            if entry.given < entry.gives:
                entry.ids.append(session.next_token(entry.ids))
                entry.given += 1
                pairs.append((name, entry.ids[-1]))
            if entry.given == entry.gives >= entry.request.output_tokens:
                del running[name]
                session.end_request()
        match session.settings["stray"]:
            case "unknown":
                pairs.append(("nobody", 0))
            case "twice":
                pairs.append(pairs[0])
        return pairs

    def clear(self) -> None:
        """Forget everybody."""
        self._running.clear()


def require(context_tokens: int, vocabulary: int, token_ids: Sequence[int], output_tokens: int) -> None:
    """Refuse a request that cannot be.

    Raises:
        ContextOverflow: it does not fit.
        EngineError: the prompt is empty, or has ids outside the vocabulary.
    """
    if not token_ids:
        msg = "fake: expected a prompt of at least one token, got none"
        raise EngineError(msg)
    if outside := [token for token in token_ids if not 0 <= token < vocabulary]:
        msg = f"fake: expected ids in [0, {vocabulary}), got {outside[0]} at position {token_ids.index(outside[0])}"
        raise EngineError(msg)
    needed = len(token_ids) + output_tokens - 1
    if needed > context_tokens:
        msg = f"fake: request needs {needed} tokens, the context holds {context_tokens}; load with more"
        raise ContextOverflow(msg)
