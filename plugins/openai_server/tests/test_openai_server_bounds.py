"""No server costs more than was asked for: bytes and time end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from enginecmp import EngineError, Request, RequestFailed

PROMPT = [11, 12, 13, 14, 15]
MIB = 1 << 20
SOON = "0.3"


class Gone:
    """Says when a server that goes on and on was hung up on, and how much it had sent."""

    def __init__(self) -> None:
        self.sent = 0
        self._over = threading.Event()

    def send(self, talk: Any, pieces: Iterator[bytes], pause_seconds: float = 0.0) -> None:
        """Send until nobody listens."""
        try:
            for piece in pieces:
                talk.raw(piece)
                self.sent += len(piece)
                if pause_seconds and self._over.wait(pause_seconds):
                    break
        except OSError:
            self._over.set()
            raise

    def require(self) -> None:
        assert self._over.wait(20), "the server was listened to for too long"


@pytest.fixture
def gone() -> Iterator[Gone]:
    gone = Gone()
    yield gone
    gone._over.set()


def forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def chunked(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

FLOODS: list[tuple[str, bytes, bytes, str]] = [
    ("length", HEAD + b"Content-Length: 1073741824\r\n\r\n", b" " * MIB, r"expected less than 4 MiB from GET /models"),
    ("chunks", HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunked(b"[" * MIB), r"expected less than 4 MiB"),
    ("to_the_end", HEAD + b"\r\n", b" " * MIB, r"expected less than 4 MiB from GET /models, got more"),
    ("headers", HEAD, b"X-A: " + b"a" * 1000 + b"\r\n", r"broken HTTP came in front of its answer"),
    ("header", HEAD + b"X-A: ", b"a" * MIB, r"broken HTTP came in front of its answer"),
    ("refusal", b"HTTP/1.1 500 X\r\n\r\n", b"e" * MIB, r"got 500: e{100,160}…; see the server's log"),
    ("chunk_extension", HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * MIB, r"broken HTTP came in the middle"),
]


@pytest.mark.parametrize(("head", "piece", "message"), [flood[1:] for flood in FLOODS], ids=[f[0] for f in FLOODS])
def test_an_answer_without_end_is_read_as_far_as_is_needed(
    stub: Any, drive: Any, gone: Gone, head: bytes, piece: bytes, message: str
) -> None:
    def flood(talk: Any, body: dict[str, Any]) -> None:
        talk.raw(head)
        gone.send(talk, forever(piece))

    stub.routes["/v1/models"] = flood
    with pytest.raises(EngineError, match=message):
        drive()
    gone.require()
    # What the kernel holds between two ends of loopback comes on top of what was read.
    assert gone.sent < 32 * MIB


STREAMS: list[tuple[str, bytes, str]] = [
    ("a_line", chunked(b"z" * MIB), r"expected events of at most 4 MiB, got one without an end"),
    ("an_event", chunked(b"data: " + b"z" * MIB + b"\n"), r"expected events of at most 4 MiB, got one without an end"),
    ("comments", chunked(b": " + b"z" * MIB + b"\n\n"), r"expected a stream of 4 tokens, got more than 4 MiB with 0"),
    ("tokens", chunked(b'data: {"choices":[{"text":"a"}]}\n\n'), r"expected 4 tokens, the stream went on after 5"),
    (
        "ids",
        chunked(b'data: {"choices":[{"token_ids":[1,2,3]}]}\n\n'),
        r"expected 4 tokens, the stream went on after 6",
    ),
]


@pytest.mark.parametrize(("piece", "message"), [case[1:] for case in STREAMS], ids=[case[0] for case in STREAMS])
def test_a_stream_without_end_is_read_as_far_as_was_asked_for(
    stub: Any, drive: Any, gone: Gone, piece: bytes, message: str
) -> None:
    driver = drive()

    def flood(talk: Any, body: dict[str, Any]) -> None:
        talk.raw(STREAM_HEAD)
        gone.send(talk, forever(piece))

    stub.behaviours.append(flood)
    with pytest.raises(EngineError, match=message):
        driver.request(PROMPT, 4)
    gone.require()
    assert gone.sent < 32 * MIB
    assert driver.request(PROMPT, 4)[1] == 4


EMPTY_CHUNK = chunked(b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n')


@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (b"", [b"H", *[b"T"] * 9999]),
        (HEAD, [b"X", *[b"-"] * 9999]),
        (HEAD + b"Content-Length: 9999\r\n\r\n", [b" "] * 9999),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", [b"1\r\n \r\n"] * 9999),
        (b"", [b"HTTP/1.1 100 Continue\r\n\r\n"] * 9999),
        (b"HTTP/1.1 500 X\r\n\r\n", [b"e"] * 9999),
    ],
    ids=["status_line", "header", "body", "chunks", "continue", "refusal"],
)
def test_a_byte_now_and_then_does_not_put_off_the_end_of_a_question(
    stub: Any, drive: Any, gone: Gone, head: bytes, pieces: list[bytes]
) -> None:
    def dribble(talk: Any, body: dict[str, Any]) -> None:
        talk.raw(head)
        gone.send(talk, iter(pieces), 0.02)

    stub.routes["/v1/models"] = dribble
    with pytest.raises(EngineError, match=r"the whole answer to GET /models from .* within 0\.3 s"):
        drive(timeout_seconds=SOON)
    gone.require()


@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (b"", [b"H", b"T", b"T", b"P", *[b"/"] * 9999]),
        (STREAM_HEAD, [chunked(b":")] * 9999),
        (STREAM_HEAD, [chunked(b": keep-alive\n\n")] * 9999),
        (STREAM_HEAD, [EMPTY_CHUNK] * 9999),
        (STREAM_HEAD, [chunked(b'data: {"choices":[{"text":"a"}]}\n\n'), *[EMPTY_CHUNK] * 9999]),
        (b"HTTP/1.1 500 X\r\n\r\n", [b"e"] * 9999),
        (HEAD + b"\r\n", [b"{"] * 9999),
    ],
    ids=["head", "bytes", "comments", "empty_chunks", "after_a_token", "refusal", "no_stream"],
)
def test_a_byte_now_and_then_does_not_put_off_the_next_token(
    stub: Any, drive: Any, gone: Gone, head: bytes, pieces: list[bytes]
) -> None:
    driver = drive(timeout_seconds=SOON)

    def dribble(talk: Any, body: dict[str, Any]) -> None:
        talk.raw(head)
        gone.send(talk, iter(pieces), 0.02)

    stub.behaviours.append(dribble)
    with pytest.raises(EngineError, match=r"(first|next) token from .* within 0\.3 s"):
        driver.request(PROMPT, 4)
    gone.require()
    assert driver.request(PROMPT, 4)[1] == 4


def test_busy_requests_do_not_hide_one_that_gets_nothing(stub: Any, drive: Any, gone: Gone) -> None:
    driver = drive(max_sequences=2, timeout_seconds="0.5")
    stop = threading.Event()

    def silent(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        gone.send(talk, forever(chunked(b": ping\n\n")), 0.02)

    def busy(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for _ in range(50):
            talk.token(" a")
            if stop.wait(0.03):
                break

    def told_apart(talk: Any, body: dict[str, Any]) -> None:
        # Two requests sent at once may come in either order.
        (silent if body["max_tokens"] == 4 else busy)(talk, body)

    stub.behaviours += [told_apart, told_apart]
    for name, tokens in (("silent", 4), ("busy", 60)):
        asked = Request(id=name, token_ids=PROMPT, output_tokens=tokens)
        assert driver.hook.cmp_submit(session=driver.session, request=asked)

    def step_forever() -> None:
        while True:
            driver.hook.cmp_step(session=driver.session, wake=-1)

    with pytest.raises(RequestFailed, match=r"request silent: expected the first token .* without one") as failed:
        step_forever()
    assert failed.value.request_id == "silent"
    gone.require()
    stop.set()
