"""Continuous batching of the fake engine: a step costs what it carries, and misbehaves where it is told to.

A step takes `decode_us`, `batch_us` more for every further request in it, and `prefill_us` for every token of the
prompts that came in since the last one; their first tokens come at its end.
"""

from __future__ import annotations

import numpy as np

from enginecmp.testing.fake_session import FakeSession, Running
from enginecmp.types import Request


def submit(session: FakeSession, request: Request) -> bool:
    """Take a request in; False while there are `max_sequences`."""
    session.require(request.token_ids, request.output_tokens)
    if len(session.running) >= session.max_sequences:
        return False
    session.fault.maybe("submit")
    session.begin_request()
    gives = request.output_tokens - int(session.settings["short"]) + int(session.settings["long"])
    unpaid = len(request.token_ids) - session.cached(request.token_ids)
    session.running[request.id] = Running(
        request, list(request.token_ids), unpaid, gives, draws=np.random.default_rng(request.decoding.seed)
    )
    return True


def step(session: FakeSession) -> list[tuple[str, int]]:
    """Advance everybody by a token."""
    running = session.running
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
            entry.ids.append(session.next_token(entry.ids, entry.request.decoding, entry.draws))
            entry.given += 1
            pairs.append((name, entry.ids[-1]))
        ended = entry.given > 0 and entry.ids[-1] in entry.request.decoding.end_ids
        if ended or entry.given == entry.gives >= entry.request.output_tokens:
            del running[name]
            session.end_request()
    match session.settings["stray"]:
        case "unknown":
            pairs.append(("nobody", 0))
        case "twice":
            pairs.append(pairs[0])
    return pairs
