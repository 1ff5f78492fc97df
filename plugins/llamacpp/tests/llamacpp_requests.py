"""Requests of many shapes, run one by one or together."""

from __future__ import annotations

from typing import Any

from enginecmp import Request
from enginecmp_llamacpp import cmp_decode, cmp_prefill, cmp_reset, cmp_step, cmp_submit


def requests_of(token_ids: list[int]) -> list[Request]:
    """Seven requests that differ in prompt, length and output; one asks for a single token."""
    shapes = [(5, 9), (40, 3), (1, 12), (23, 1), (9, 9), (60, 6), (12, 20)]
    return [
        Request(id=f"r{number}", token_ids=token_ids[number:][:length], output_tokens=wanted)
        for number, (length, wanted) in enumerate(shapes)
    ]


def one_by_one(session: Any, requests: list[Request]) -> dict[str, list[int]]:
    answers = {}
    for request in requests:
        cmp_reset(session)
        first = cmp_prefill(session, request.token_ids, request.output_tokens)
        answers[request.id] = [first, *cmp_decode(session, request.output_tokens - 1)]
    cmp_reset(session)
    return answers


def together(session: Any, requests: list[Request]) -> dict[str, list[int]]:
    waiting = list(requests)
    answers: dict[str, list[int]] = {request.id: [] for request in requests}
    while True:
        while waiting and cmp_submit(session, waiting[0]):
            waiting.pop(0)
        pairs = cmp_step(session)
        if not pairs:
            assert not waiting
            return answers
        for request_id, token in pairs:
            answers[request_id].append(token)
