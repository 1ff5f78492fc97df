"""Streams are read by the grammar, answers by their types, and a server's own words arrive on one line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import unchanged

from enginecmp import NO_ID, EngineError, Request

pytestmark = unchanged.left_out_with("plugins/openai_server")

PROMPT = [11, 12, 13, 14, 15]
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


def chunked(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


DEEP = b"[" * 200_000


def as_models(content: bytes) -> Callable[[Any, dict[str, Any]], None]:
    return lambda talk, body: talk.reply(200, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, r"expected JSON from GET /models, got '\[{100,}…'; is this an OpenAI-compatible server\?"),
        (b'{"data":' * 50_000, r"expected JSON from GET /models"),
        (b'{"error": {"message": "' + b"m" * 100_000 + b'"}}', r"got an error: m{100,}…; see the server's log"),
        (b'{"data": [' + b",".join([b'{"id": "%d"}' % n for n in range(50_000)]) + b"]}", r"got 50000 \(0, 1, 2, 3, 4"),
        (
            b'{"data": [{"id": "a\\u001b]0;b\\u0007\\u202e\\nc"}, 1, {"id": 5}]}',
            r"got 2 \(a\\x1b\]0;b\\x07\\u202e c, 5\)",
        ),
        (b'{"data": 1' + b"0" * 9000 + b"}", r"GET /models, got"),
    ],
    ids=["deep", "deep_objects", "long_words", "many_models", "controls", "huge_number"],
)
def test_models_of_any_shape_are_one_line(stub: Any, drive: Any, content: bytes, message: str) -> None:
    stub.routes["/v1/models"] = as_models(content)
    with pytest.raises(EngineError, match=message) as raised:
        drive()
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    "entry",
    [
        {"max_model_len": -3, "meta": {"n_ctx": -5, "n_vocab": "x"}},
        {"max_model_len": 10**30, "meta": [1]},
        {"max_model_len": 1.5, "meta": {"n_ctx": None}},
        {"owned_by": {"a": 1}},
    ],
)
def test_facts_of_a_wrong_type_are_not_taken(stub: Any, drive: Any, entry: dict[str, Any]) -> None:
    stub.models = [{"id": "m", **entry}]
    stub.routes["/openapi.json"] = {"info": "a text"}
    stub.routes["/info"] = ["model_id"]
    driver = drive()
    assert driver.session.context_tokens == 64
    assert driver.request(PROMPT, 4)[1] == 4


def ends_well(talk: Any, usage: dict[str, Any], **last: Any) -> None:
    talk.event({"choices": [{"text": "", "finish_reason": "length"}], "usage": usage, **last})
    talk.done()
    talk.end()


USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


@pytest.mark.parametrize(
    ("choice", "usage", "message"),
    [
        (
            {"text": "a", "token_ids": [-(10**9)]},
            USAGE,
            r"expected token ids in \[0, \d+\), the server named another one",
        ),
        ({"text": "a", "token_ids": [10**40]}, USAGE, r"expected token ids in \[0, \d+\)"),
        ({"text": "a", "token_ids": ["x"]}, USAGE, r"expected a chunk of a completion after 0 others"),
        ({"text": "a"}, {**USAGE, "completion_tokens": 10**40}, r"expected a chunk of a completion after 2 others"),
        ({"text": "a"}, {**USAGE, "completion_tokens": -4}, r"expected a chunk of a completion after 2 others"),
        ({"text": "a"}, {**USAGE, "prompt_tokens_details": {"cached_tokens": -5 * 10**18}}, r"expected a chunk"),
        (
            {"text": "a", "finish_reason": "\x1b[2J\u202e"},
            {**USAGE, "completion_tokens": 3},
            r"reason '\\x1b\[2J\\u202e'",
        ),
    ],
)
def test_numbers_and_names_that_cannot_be_are_refused(
    stub: Any, drive: Any, choice: dict[str, Any], usage: dict[str, Any], message: str
) -> None:
    driver = drive()

    def answer(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for _ in range(2):
            talk.event({"choices": [choice]})
        last = {} if "finish_reason" in choice else {"finish_reason": "length"}
        talk.event({"choices": [{"text": "", **last}], "usage": usage})
        talk.done()
        talk.end()

    stub.behaviours.append(answer)
    with pytest.raises(EngineError, match=message) as raised:
        driver.request(PROMPT, 2)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    "timings", [[], "x", {"prompt_ms": 10**400, "predicted_ms": -1}, {"prompt_ms": 1e308, "predicted_ms": None}]
)
def test_times_that_cannot_be_are_no_metrics(stub: Any, drive: Any, timings: Any) -> None:
    driver = drive()

    def answer(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        talk.token("a")
        talk.token("b")
        ends_well(talk, USAGE, timings=timings)

    stub.behaviours.append(answer)
    metrics = driver.request(PROMPT, 2)[2]
    assert not {"engine_prefill_seconds", "engine_decode_seconds"} & set(metrics)


def events(talk: Any, *content: str) -> None:
    talk.begin("Text/Event-Stream; charset=utf-8")
    for piece in content:
        talk.chunk(piece.encode())
    talk.end()


def token(text: str) -> str:
    return json.dumps({"choices": [{"text": text}]})


USAGE_EVENT = json.dumps({"choices": [], "usage": USAGE})


@pytest.mark.parametrize(
    "pieces",
    [
        ("\ufeff", f"data: {token('a')}\n\ndata: {token('b')}\n\ndata: {USAGE_EVENT}\n\ndata: [DONE]\n\n"),
        (f"data:{token('a')}\r\r: ping\r\rdata:{token('b')}\r\rdata:{USAGE_EVENT}\r\rdata:[DONE]\r\r",),
        (
            f"retry: 3\r\nid: 1\r\nevent: message\r\ndata: {token('a')}\r\n\r\n",
            f"data: {token('b')}\r\n\r\nevent: ping\r\ndata: alive\r\n\r\ndata:\r\n\r\n",
            f"data: {USAGE_EVENT}\r\n\r\ndata: [DONE]\r\n\r\n",
        ),
        ('data: {"choices":\ndata: [{"text":"a"}]}\n\n', f"data: {token('b')}\n\ndata: {USAGE_EVENT}\n\ndata: [DONE]"),
    ],
    ids=["byte_order_mark", "carriage_returns", "fields", "several_data_lines"],
)
def test_a_stream_is_read_by_the_grammar(stub: Any, drive: Any, pieces: tuple[str, ...]) -> None:
    driver = drive()
    stub.behaviours.append(lambda talk, body: events(talk, *pieces))
    assert driver.request(PROMPT, 2)[:2] == ([NO_ID, NO_ID], 2)


def http_1_0(talk: Any, body: dict[str, Any]) -> None:
    talk.raw(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for event in (token("a"), token("b"), USAGE_EVENT, "[DONE]"):
        talk.raw(f"data: {event}\n\n".encode())
    talk.close()


def test_a_stream_that_ends_with_its_connection_is_whole(stub: Any, drive: Any) -> None:
    driver = drive()
    stub.behaviours += [http_1_0, http_1_0]
    assert driver.request(PROMPT, 2)[:2] == ([NO_ID, NO_ID], 2)
    assert driver.request(PROMPT, 2)[:2] == ([NO_ID, NO_ID], 2)


def refuses_in_chunks(talk: Any, body: dict[str, Any]) -> None:
    talk.raw(b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in (b'{"error": {"mess', b'age": "out of ', b'memory"}}'):
        talk.chunk(piece)
    talk.end()


def refuses_and_breaks_off(talk: Any, body: dict[str, Any]) -> None:
    talk.raw(b"HTTP/1.1 500 X\r\nContent-Length: 1000\r\n\r\nout of memory")
    talk.close()


def compressed(talk: Any, body: dict[str, Any]) -> None:
    content = gzip.compress(f"data: {token('a')}\n\n".encode())
    talk.raw(STREAM_HEAD + b"Content-Encoding: GZIP\r\n\r\n" + chunked(content))
    talk.end()


def compressed_refusal(talk: Any, body: dict[str, Any]) -> None:
    talk.reply(500, gzip.compress(b"out of memory"), "Content-Encoding: gzip")


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (refuses_in_chunks, "expected 200 from POST /completions, got 503: out of memory; it is busy"),
        (refuses_and_breaks_off, "expected 200 from POST /completions, got 500: out of memory; see"),
        (compressed, r"expected an uncompressed answer to POST /completions .*, got content-encoding gzip; turn"),
        (compressed_refusal, r"got 500: words compressed as gzip; see"),
        (lambda talk, _: talk.reply(200, {"error": {"message": "overloaded"}}), "got an error: overloaded; see"),
        (lambda talk, _: talk.reply(200, {"error": "overloaded"}), "got an error: overloaded; see"),
        (
            lambda talk, _: events(talk, 'event: error\ndata: {"message": "no memory"}\n\n'),
            "after 0 chunks: no memory; see",
        ),
        (lambda talk, _: events(talk, "event: error\ndata: no\ndata: memory\n\n"), "after 0 chunks: no memory; see"),
        (lambda talk, _: events(talk, 'error: {"message": "no memory"}\n\n'), "after 0 chunks: no memory; see"),
        (lambda talk, _: events(talk, '{"error": {"message": "no memory"}}'), "after 0 chunks: no memory; see"),
        (
            lambda talk, _: events(talk, f"data: {token('a')}\n\n", 'data: {"error": "no memory"}\n\n'),
            "1 chunks: no memory",
        ),
        (
            lambda talk, _: events(talk, 'data: {"object": "error", "message": "no memory", "code": 500}\n\n'),
            "after 0 chunks: no memory; see",
        ),
        (lambda talk, _: events(talk, 'data: {"detail": "no memory"}\n\n'), "after 0 chunks: no memory; see"),
        (
            lambda talk, _: events(talk, f"data: {token('a')}\n\n", 'data: {"choices": [], "message": "gone"}\n\n'),
            r"ended without after 1 chunks",
        ),
        (
            lambda talk, _: talk.reply(200, {"object": "error", "message": "overloaded"}),
            "got an error: overloaded; see",
        ),
        (lambda talk, _: events(talk, "data: " + "[" * 100_000 + "\n\n"), r"expected a chunk of a completion after 0"),
        (lambda talk, _: events(talk, 'data: {"x":' + "[" * 100_000 + "\n\n"), r"expected a chunk of a completion"),
        (
            lambda talk, _: events(talk, 'data: {"error":' + '{"error":' * 900 + "1" + "}" * 901 + "\n\n"),
            r"got an error",
        ),
        (
            lambda talk, _: events(talk, 'data: {"error": "\\u001b]0;x\\u0007\\u202e"}\n\n'),
            r"\\x1b\]0;x\\x07\\u202e; see",
        ),
    ],
)
def test_the_servers_own_words_arrive_on_one_line(stub: Any, drive: Any, behaviour: Any, message: str) -> None:
    driver = drive()
    stub.behaviours.append(behaviour)
    with pytest.raises(EngineError, match=message) as raised:
        driver.request(PROMPT, 2)
    assert str(raised.value).isprintable()
    assert driver.request(PROMPT, 2)[1] == 2


def test_a_compressed_answer_to_a_question_is_named(stub: Any, drive: Any) -> None:
    stub.routes["/v1/models"] = lambda talk, body: talk.reply(
        200, gzip.compress(b" " * (1 << 20)), "Content-Encoding: gzip"
    )
    with pytest.raises(EngineError, match=r"an uncompressed answer to GET /models .* got content-encoding gzip"):
        drive()


def test_an_error_of_status_200_for_an_answer_in_one_piece_is_shown(stub: Any, drive: Any) -> None:
    stub.routes["/v1/completions"] = {"error": {"message": "quota 7 of 7 used"}}
    with pytest.raises(EngineError, match="POST /completions, got an error: quota 7 of 7 used"):
        drive(prompt="ids")


def test_the_last_token_of_a_batch_waits_for_the_end_of_an_http_1_0_stream(stub: Any, drive: Any) -> None:
    driver = drive()
    stub.behaviours.append(http_1_0)
    asked = Request(id="a", token_ids=PROMPT, output_tokens=2)
    assert driver.hook.cmp_submit(session=driver.session, request=asked)
    pairs: list[tuple[str, int]] = []
    while len(pairs) < 2:
        pairs += driver.hook.cmp_step(session=driver.session, wake=-1)
    assert pairs == [("a", NO_ID), ("a", NO_ID)]
