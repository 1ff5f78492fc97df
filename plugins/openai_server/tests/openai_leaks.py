"""A server that repeats the API key it was sent, at every place and in every form in which servers do."""

from __future__ import annotations

import base64
import html
import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

KEY = "sk-SecretKey/0123+abcdefGHIJKLmnop"
_BEARER = f"Bearer {KEY}"

FORMS: dict[str, str] = {
    "plain": KEY,
    "upper": KEY.upper(),
    "lower": KEY.lower(),
    "percent": quote(KEY, safe=""),
    "percent_all": "".join(f"%{byte:02X}" for byte in KEY.encode()),
    "percent_twice": "".join(f"%25{byte:02x}" for byte in KEY.encode()),
    "base64": base64.b64encode(_BEARER.encode()).decode(),
    "base64_url": base64.urlsafe_b64encode(f"u:{KEY}".encode()).decode(),
    "base64_upper": base64.b64encode(KEY.upper().encode()).decode(),
    "base64_lines": base64.encodebytes(f"user: {KEY}".encode()).decode()[:30] + "\n" + KEY,
    "hex": KEY.encode().hex(),
    "hex_colons": KEY.encode().hex(":").upper(),
    "hex_c": "".join(f"\\x{byte:02x}" for byte in KEY.encode()),
    "json": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "json_slash": KEY.replace("/", "\\/"),
    "html": "".join(f"&#{ord(letter)};" for letter in KEY),
    "html_hex": "".join(f"&#x{ord(letter):x};" for letter in KEY),
    "html_names": html.escape(KEY).replace("+", "&plus;").replace("/", "&sol;"),
    "quoted_printable": "".join(f"={byte:02X}" for byte in KEY.encode()),
    "decimal": str(list(KEY.encode())),
    "spaced": " ".join(KEY),
    "split": KEY[:15] + " \r\n\t" + KEY[15:],
    "split_json": f'["{KEY[:12]}", "{KEY[12:]}"]',
    "coloured": KEY[:9] + "\x1b[31m" + KEY[9:],
    "invisible": "\u200b".join(KEY),
    "cut": KEY[:14],
    "tail": KEY[-14:],
    "dashes": "-".join(KEY),
}
"""Forms of the key, by name."""

RARE_FORMS: dict[str, str] = {
    "backwards": KEY[::-1],
    "wide": "".join(chr(ord(letter) + 0xFEE0) for letter in KEY),
    "bold": "".join(chr(ord(letter) + 0x1D3BF) if letter.isupper() else letter for letter in KEY.upper()),
    "accented": "\u0301".join(KEY),
    "percent_u": "".join(f"%u{ord(letter):04x}" for letter in KEY),
    "python_u": "".join(f"\\U{ord(letter):08x}" for letter in KEY),
    "code_points": " ".join(f"U+{ord(letter):04X}" for letter in KEY),
    "html_open": "".join(f"&#x{ord(letter):x}" for letter in KEY),
    "html_tags": "<wbr>".join(KEY),
    "base64_twice": base64.b64encode(base64.b64encode(KEY.encode())).decode(),
    "base85": base64.b85encode(KEY.encode()).decode(),
    "ascii85": base64.a85encode(KEY.encode()).decode(),
    "chunks": "".join(f"4\r\n{KEY[at : at + 4]}\r\n" for at in range(0, len(KEY), 4)),
    "events": "".join(f'data: {{"t":"{KEY[at : at + 5]}"}}\n\n' for at in range(0, len(KEY), 5)),
    "words": f"begins {KEY[:6]}, then {KEY[6:13]}, then {KEY[13:20]}, ends {KEY[20:]}",
}
"""Further ones, for the redaction alone."""


_RUN = 12
"""Letters and digits in a row that give a form away."""


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", text).lower())


_RUNS = {
    name: {_letters(form)[at : at + _RUN] for at in range(len(_letters(form)) - _RUN + 1)}
    for name, form in (FORMS | RARE_FORMS).items()
}


def given_away(text: str) -> set[str]:
    """Return the forms of which a text holds a run, wherever it is split."""
    letters = _letters(text)
    found = {letters[at : at + _RUN] for at in range(len(letters) - _RUN + 1)}
    return {name for name, runs in _RUNS.items() if runs & found}


def _status(talk: Any, line: str, headers: str = "", body: str = "") -> None:
    content = body.encode()
    talk.raw(f"HTTP/1.1 {line}\r\nContent-Length: {len(content)}\r\n{headers}\r\n".encode() + content)
    talk.close()


def _events(talk: Any, *events: str) -> None:
    talk.begin()
    talk.token(" w0")
    for event in events:
        talk.chunk(event.encode())
    talk.end()


def _one(words: str) -> str:
    """Return words that fit into one line of HTTP."""
    return " ".join(words.split()).encode("ascii", "replace").decode().replace("\x1b", "?")


def _counted(talk: Any, body: dict[str, Any], **changes: Any) -> None:
    talk.reply(200, {"choices": [{"text": "x"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1} | changes})


Leak = Callable[[Any, dict[str, Any], str], None]

MODELS: dict[str, Leak] = {
    "status_line": lambda t, b, w: _status(t, f"500 {_one(w)}"),
    "broken_status_line": lambda t, b, w: t.raw(f"HTTP/9.9 {w}\r\n\r\n".encode()),
    "no_http": lambda t, b, w: t.raw(f"{w}\r\n\r\n".encode()),
    "broken_header": lambda t, b, w: t.raw(f"HTTP/1.1 200 OK\r\n{_one(w)} is bad\r\n\r\n".encode()),
    "broken_header_value": lambda t, b, w: t.raw(f"HTTP/1.1 200 OK\r\nX-A: a\x00{_one(w)}\r\n\r\n".encode()),
    "content_length": lambda t, b, w: t.raw(f"HTTP/1.1 200 OK\r\nContent-Length: {_one(w)}\r\n\r\n".encode()),
    "transfer_encoding": lambda t, b, w: t.raw(f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {_one(w)}\r\n\r\n".encode()),
    "content_encoding": lambda t, b, w: _status(t, "200 OK", f"Content-Encoding: {_one(w)}\r\n", "{}"),
    "retry_after": lambda t, b, w: _status(t, "429 X", f"Retry-After: {_one(w)}\r\n", "slow"),
    "redirect": lambda t, b, w: _status(t, "307 X", f"Location: http://x/{_one(w)}\r\n", w),
    "no_json": lambda t, b, w: t.reply(200, w.encode()),
    "no_json_cut": lambda t, b, w: t.reply(200, ("x" * 140 + w).encode()),
    "no_list": lambda t, b, w: t.reply(200, {"object": w}),
    "error_200": lambda t, b, w: t.reply(200, {"error": {"message": w}}),
    "error_401": lambda t, b, w: t.reply(401, {"error": {"message": f"Incorrect API key provided: {w}"}}),
    "error_nested": lambda t, b, w: t.reply(400, {"detail": [{"input": {"authorization": w}}]}),
    "error_cut": lambda t, b, w: t.reply(500, ("y" * 150 + w).encode()),
    "error_long": lambda t, b, w: t.reply(500, (w + "z" * 70_000).encode()),
    "several_models": lambda t, b, w: t.reply(200, {"data": [{"id": w}, {"id": "y" * 110 + w}, {"id": "c"}]}),
    "model_name": lambda t, b, w: t.reply(200, {"data": [{"id": w}]}),
    "model_file": lambda t, b, w: t.reply(200, {"data": [{"id": f"{w}.gguf"}]}),
    "model_number": lambda t, b, w: t.reply(200, {"data": [{"id": {"x": w}, "meta": {"n_vocab": w}}]}),
    "title": lambda t, b, w: t.reply(200, {"data": [{"id": "m", "owned_by": w}]}),
}
"""What it does when it is asked for its models."""

PLAIN: dict[str, Leak] = {
    "count": lambda t, b, w: _counted(t, b, prompt_tokens=w),
    "no_count": lambda t, b, w: t.reply(200, {"choices": [{"text": w}]}),
    "refused": lambda t, b, w: t.reply(403, {"error": w}),
    "refused_cut": lambda t, b, w: t.reply(503, {"error": "x" * 130 + w}),
}
"""What it does when it is asked for an answer in one piece."""

STREAM: dict[str, Leak] = {
    "event_error": lambda t, b, w: _events(t, f"event: error\ndata: {json.dumps({'message': w})}\n\n"),
    "event_error_lines": lambda t, b, w: _events(
        t, "event: error\n", *(f"data: {part}\n" for part in w.split("\n")), "\n"
    ),
    "error_object": lambda t, b, w: _events(t, f"data: {json.dumps({'error': {'message': w}})}\n\n"),
    "no_chunk": lambda t, b, w: _events(t, f"data: {_one(w)}\n\n"),
    "no_chunk_cut": lambda t, b, w: _events(t, f"data: {'x' * 140}{_one(w)}\n\n"),
    "wrong_type": lambda t, b, w: _events(t, f"data: {json.dumps({'choices': w})}\n\n"),
    "finish_reason": lambda t, b, w: _events(
        t, f"data: {json.dumps({'choices': [{'finish_reason': w}]})}\n\n", "data: [DONE]\n\n"
    ),
    "content_type": lambda t, b, w: _status(t, "200 OK", f"Content-Type: {_one(w)}\r\n", "x"),
    "error_as_200": lambda t, b, w: t.reply(200, {"error": w}),
    "stray_lines": lambda t, b, w: (t.begin(), t.chunk(_one(w).encode() + b"\n"), t.end()),
    "chunk_size": lambda t, b, w: (t.begin(), t.token(" a"), t.raw(f"{_one(w)}\r\n".encode())),
    "trailer": lambda t, b, w: (t.begin(), t.token(" a"), t.raw(f"0\r\n{_one(w)}\r\n\r\n".encode())),
    "refused": lambda t, b, w: t.reply(500, {"error": {"message": w}}),
    "refused_chunked": lambda t, b, w: (
        t.raw(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n"),
        *(t.chunk(part.encode()) for part in (w[:9], w[9:])),
        t.close(),
    ),
}
"""What it does when it is asked for a stream, once it is loaded."""

CASES = {
    **{f"models-{name}": ("models", leak) for name, leak in MODELS.items()},
    **{f"plain-{name}": ("plain", leak) for name, leak in PLAIN.items()},
    **{f"stream-{name}": ("stream", leak) for name, leak in STREAM.items()},
}
LEARNING_TOKENS = 2
"""Output tokens of the streams by which a server is got to know."""


def install(stub: Any, name: str, words: str) -> str:
    """Let a stub behave like one of `CASES` under a path of its own; return its address."""
    where, leak = CASES[name]
    good = stub.always

    def models(talk: Any, body: dict[str, Any]) -> None:
        if where == "models":
            leak(talk, body, words)
        else:
            talk.reply(200, {"data": [{"id": "m"}]})

    def completions(talk: Any, body: dict[str, Any]) -> None:
        tokens = body["max_tokens"]
        if body["stream"] and where == "stream" and tokens != LEARNING_TOKENS:
            leak(talk, body, words)
        elif body["stream"]:
            good(talk, body)
        elif where == "plain":
            leak(talk, body, words)
        else:
            _counted(talk, body, prompt_tokens=len(body["prompt"]), completion_tokens=tokens)

    stub.routes |= {f"/{name}/v1/models": models, f"/{name}/v1/completions": completions}
    return stub.url.replace("/v1", f"/{name}/v1")
