"""Answers of workers: damaged bytes, and msgpack of the right form with values that no engine gives.

What is accepted must make a sample that the analysis reads.
"""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import msgspec

from enginecmp.format.records import Cell, Sample
from enginecmp.wire.answers import ANSWERS, require
from enginecmp.wire.protocol import WrongMessage, decode
from fuzz.damage import EDGES, damaged
from fuzz.runner import Target

_TIMES = {"start_ns": 10, "end_ns": 40}
_REQUEST = {"token_ns": [20, 30], "ids": [3, 4], "output_tokens": 2, "metrics": {"x": 0.5}, "where": "decode"}
_ANSWERS: tuple[tuple[str, Any], ...] = (
    ("start", {"ok": 4711}),
    ("probe", {"ok": {"ok": False, "reason": "no GPU", "fix": "buy one"}}),
    ("load", {"ok": {**_TIMES, "metrics": {"weights_bytes": 1000.0}}}),
    ("load", {"error": {"type": "EngineError", "message": "no", "traceback": ""}}),
    ("request", {"ok": {**_TIMES, **_REQUEST, "error": None}}),
    ("request", {"ok": {**_TIMES, **_REQUEST, "error": {"type": "E", "message": "no", "traceback": ""}}}),
    ("score", {"ok": {"shape": [2, 3], "data": bytes(24)}}),
    ("prepare_operation", {"ok": {"calls": 8}}),
    ("operation", {"ok": {**_TIMES, "result": [1, 2], "metrics": {}}}),
    ("operation", {"ok": {**_TIMES, "result": {"shape": [1, 2], "data": bytes(8)}, "metrics": {}}}),
    ("profile", {"ok": {**_TIMES, "seconds": {"ffn": 0.5}}}),
    ("serve", {"ok": {"errors": {"0": "no"}, "window": {"steal_seconds": 0.0}, "metrics": {}}}),
    ("batch", {"ok": {"0": [1, 2]}}),
    ("unload", {"ok": None}),
)
_ASKED: dict[str, Any] = {
    "token_ids": [1, 2],
    "output_tokens": 2,
    "prompts": [[1]],
    "requests": [{"id": "0", "token_ids": [1], "output_tokens": 2}],
}
_ODD: tuple[Any, ...] = (
    *EDGES,
    *(None, True, -1, -(2**63), 1.5, math.nan, math.inf, -math.inf, 1e300),
    *("", "x", "\x1b]0;x\x07", "two\nlines", "\u202e", "x" * 5000, b"", b"\xff", [], {}, [[]], [None], {"": 1}, {5: 5}),
    *(msgspec.msgpack.Ext(5, b"x"), [1] * 2000, {f"m{n}": 1.0 for n in range(1200)}),
)


def _with(number: int, body: bytes) -> bytes:
    return bytes([number]) + body


def broken_bytes(draw: random.Random) -> bytes:
    """Return the number of an answer, and its bytes with faults."""
    number = draw.randrange(len(_ANSWERS))
    return _with(number, damaged(msgspec.msgpack.encode(_ANSWERS[number][1]), draw))


def odd_values(draw: random.Random) -> bytes:
    """Return the number of an answer, and msgpack in which some of its values are others, or missing."""
    number = draw.randrange(len(_ANSWERS))
    answer = copy.deepcopy(_ANSWERS[number][1])
    for _ in range(draw.randint(1, 3)):
        place: Any = answer
        while place:
            key = draw.choice(list(place)) if isinstance(place, dict) else draw.randrange(len(place))
            if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.85:
                place = place[key]
                continue
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(_ODD))
            break
    return _with(number, msgspec.msgpack.encode(answer))


def check(content: bytes) -> None:
    """Hold an answer to the rules, and what passes to those of the files that are written of it."""
    operation = _ANSWERS[content[0]][0]
    message = decode(content[1:], ANSWERS[operation])
    answer = message.ok
    if answer is msgspec.UNSET:
        return
    try:
        require(operation, answer, _ASKED, 314, 0)
    except ValueError as error:
        raise WrongMessage(str(error)) from error
    if isinstance(answer, dict) and "start_ns" in answer:
        _require_readable(answer)


def _require_readable(answer: dict[str, Any]) -> None:
    from enginecmp_analysis.data.columns import ColumnBuilder

    sample = Sample(
        block=0,
        order=0,
        launch="b0",
        engine="e",
        cell=Cell(2, 2),
        index=0,
        phase="measure",
        intended_ns=answer["start_ns"],
        start_ns=answer["start_ns"],
        token_ns=answer.get("token_ns", []),
        end_ns=answer["end_ns"],
        prompt_tokens=2,
        output_tokens=answer.get("output_tokens", 0),
        status="ok",
        metrics=answer.get("metrics", {}),
    )
    line = msgspec.json.encode(sample)
    builder = ColumnBuilder()
    builder.add(msgspec.json.decode(line, type=Sample))
    columns = builder.build()
    assert columns.end_ns[0] >= columns.start_ns[0]
    assert all(math.isfinite(value) for value in sample.metrics.values())


TARGETS = (
    Target("answers-bytes", broken_bytes, check),
    Target("answers-values", odd_values, check),
)
