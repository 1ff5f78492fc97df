"""What servers send to `openai_server`: streams of events, and whole answers over HTTP."""

from __future__ import annotations

import json
import random
import re
import socket
from functools import cache
from typing import Any
from unittest import mock

from enginecmp import EngineError, ModelInfo
from enginecmp_openai_server import http
from enginecmp_openai_server.answer import Answer
from enginecmp_openai_server.client import Client
from enginecmp_openai_server.identity import served_entry
from enginecmp_openai_server.options import Settings, read_address
from enginecmp_openai_server.prompts import usage_of
from enginecmp_openai_server.server import Server
from fuzz.damage import damaged
from fuzz.runner import Target

VOCABULARY = 300
_KEY = "sk-0123456789abcdefghij"
_CHUNK: dict[str, Any] = {
    "id": "x",
    "choices": [{"index": 0, "text": " w", "token_ids": [5], "finish_reason": None, "delta": {"content": None}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 0}},
    "timings": {"prompt_ms": 1.5, "predicted_ms": 2},
    "error": None,
}
_ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**63, 10**400, 1e300, "", "x", "\x1b]0;x\x07\n\u202e", f"Bearer {_KEY}", "y" * 5000),
    *([], {}, [None], [1, "2"], {"message": "m"}, {"message": {"error": 1}}, [[[[[[1]]]]]]),
)
_MODELS: dict[str, Any] = {"object": "list", "data": [{"id": "m", "owned_by": "me", "meta": {"n_ctx": 64}}]}
_ANSWER: dict[str, Any] = {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}


def _odd(value: Any, draw: random.Random) -> Any:
    """Return a JSON value in which some parts are others or missing."""
    if draw.random() < 0.01:
        return draw.choice(_ODD)
    if isinstance(value, dict):
        return {key: _odd(part, draw) for key, part in value.items() if draw.random() > 0.01}
    return [_odd(part, draw) for part in value] if isinstance(value, list) else value


def stream(draw: random.Random) -> bytes:
    """Return a stream of events with faults in its JSON, its fields, its line ends and its bytes."""
    end = draw.choice(("\n", "\n", "\r\n", "\r"))
    lines = ["\ufeff"] if draw.random() < 0.2 else []
    for _ in range(draw.choice((0, 1, 2, 2, 2, 3))):
        if draw.random() < 0.2:
            lines.append(
                draw.choice((": ping", "event: error", "event: ping", "id: 1", "retry: 3", "data", "error: e")) + end
            )
        content = json.dumps(_odd(_CHUNK, draw))
        lines.append(
            "".join(f"data: {part}{end}" for part in re.split("(?<=,) ", content, maxsplit=draw.randint(1, 3))) + end
        )
    lines.append(draw.choice((*[f"data: [DONE]{end}{end}"] * 6, "data: [DONE]", "", '{"error": "e"}')))
    content = "".join(lines).encode()
    return damaged(content, draw) if draw.random() < 0.3 else content


def answer(draw: random.Random) -> bytes:
    """Return an answer over HTTP with faults in its head, its body and its bytes."""
    body = json.dumps(_odd(draw.choice((_MODELS, _ANSWER, {"error": {"message": f"bad {_KEY}"}})), draw)).encode()
    status = draw.choice((*["200 OK"] * 12, "429 X", "500 X", "307 X", "204 X", "100 Continue", "1000 X"))
    head = [f"HTTP/1.{draw.choice('110')} {status}", "Content-Type: application/json"]
    if draw.random() < 0.5:
        head.append(f"Content-Length: {len(body) + draw.choice((0, 0, 0, 0, -1, 5))}")
    elif draw.random() < 0.7:
        head.append("Transfer-Encoding: chunked")
        cut = draw.randint(0, len(body))
        body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part) + b"0\r\n\r\n"
    if draw.random() < 0.2:
        head.append(
            draw.choice(("Content-Encoding: gzip", "Retry-After: 99999", f"X-Key: {_KEY}", "broken", "A: \x00"))
        )
    content = "\r\n".join([*head, "", ""]).encode() + body
    return damaged(content, draw) if draw.random() < 0.25 else content


@cache
def _server() -> Server:
    settings = Settings(address=read_address("http://127.0.0.1:1/v1"), secret=_KEY, timeout_seconds=5)
    model = ModelInfo(
        name="m",
        path="m.gguf",
        sha256="0" * 64,
        architecture="llama",
        parameters=1,
        quantization="F32",
        bytes=1,
        context_tokens=64,
        vocabulary=VOCABULARY,
    )
    return Server(Client(settings), model, served_model="m")


def _require_clean(error: EngineError) -> None:
    assert _KEY not in str(error)
    assert _KEY[3:] not in str(error)


def check_stream(content: bytes) -> None:
    """Take in a stream, in pieces that follow from its length, and hold it to what was asked."""
    said = _server().client.redaction.said
    found = Answer(3, 2, vocabulary=VOCABULARY, expects_usage=True, most_chunks=2, said=said)
    step = 1 + len(content) % 97
    try:
        for at in range(0, len(content), step):
            found.feed(content[at : at + step])
        found.finish()
        found.check()
    except EngineError as error:
        _require_clean(error)
        raise
    assert all(-1 <= token < VOCABULARY for token in found.tokens)
    assert all(0 <= value < 1e15 for value in found.metrics().values())


def check_answer(content: bytes) -> None:
    """Read an answer as a count of tokens or as the list of models."""
    server = _server()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(content)
    theirs.shutdown(socket.SHUT_WR)
    try:
        with mock.patch.object(http, "_open", return_value=ours):
            if b"usage" in content:
                usage_of(server, (1, 2, 3), 1)
            else:
                served_entry(server.client, server.client.ask("GET", "/models"))
    except EngineError as error:
        _require_clean(error)
        raise
    finally:
        server.client.close()
        ours.close()
        theirs.close()


TARGETS = (
    Target("server-stream", stream, check_stream),
    Target("server-answer", answer, check_answer),
)
