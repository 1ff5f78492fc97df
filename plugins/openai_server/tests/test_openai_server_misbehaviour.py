"""What servers do wrong, and the one line that a user gets for it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import unchanged

from enginecmp import NO_ID, ContextOverflow, EngineError, ModelInfo, RoundTripError, load_tokenizer

pytestmark = unchanged.left_out_with("plugins/openai_server")

PROMPT = [11, 12, 13, 14, 15]


def start(talk: Any, body: dict[str, Any], tokens: int = 2) -> None:
    talk.begin()
    for number in range(tokens):
        talk.token(f" w{number}")


def close_early(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body)
    talk.close()


def reset(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body)
    talk.reset()


def broken_framing(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body)
    talk.raw(b"zz\r\nthis is no chunk\r\n")


def broken_json(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=1)
    talk.event(b'{"choices": [{"text": ')


def broken_text(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=1)
    talk.event(b'{"choices": [{"text": "\xc3"}]}')


def an_error_inside(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body)
    talk.event({"error": {"message": "the engine is dead"}})


def counts_less_than_it_sent(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=4)
    talk.usage(len(PROMPT), 3)
    talk.done()
    talk.end()


def counts_another_number(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=3)
    talk.finish("stop")
    talk.usage(len(PROMPT), 3)
    talk.done()
    talk.end()


def counts_another_prompt(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=4)
    talk.usage(len(PROMPT) + 1, 4)
    talk.done()
    talk.end()


def counts_nothing(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=4)
    talk.finish()
    talk.done()
    talk.end()


def never_done(talk: Any, body: dict[str, Any]) -> None:
    start(talk, body, tokens=4)
    talk.usage(len(PROMPT), 4)
    talk.end()


def no_stream(talk: Any, body: dict[str, Any]) -> None:
    talk.reply(200, {"choices": []})


def too_busy(talk: Any, body: dict[str, Any]) -> None:
    talk.reply(429, {"error": {"message": "slow\ndown"}}, "Retry-After: 7")


def falls_over(talk: Any, body: dict[str, Any]) -> None:
    talk.reply(500, b"<html>Internal   Server Error</html>")


def redirects(talk: Any, body: dict[str, Any]) -> None:
    talk.reply(307, b"", "Location: http://elsewhere/")


def no_http(talk: Any, body: dict[str, Any]) -> None:
    talk.raw(b"220 smtp.example ESMTP\r\n\r\n")


CASES: list[tuple[Callable[..., None], str]] = [
    (
        close_early,
        r"expected a whole HTTP/1\.1 answer from http://127\.0\.0\.1:\d+/v1, the connection closed early in the",
    ),
    (reset, r"the connection broke in the middle of its answer \(connection reset by peer\); see the server's log"),
    (broken_framing, r"expected a whole HTTP/1\.1 answer .*, broken HTTP came in the middle of its answer"),
    (broken_json, r"expected a chunk of a completion after 1 others, got '\{\"choices\": \[\{\"text\":"),
    (broken_text, r"expected a chunk of a completion after 1 others, got '\{\"choices\": \[\{\"text\": \"�"),
    (an_error_inside, r"expected 4 tokens, got an error after 2 chunks: .*the engine is dead"),
    (counts_less_than_it_sent, r"expected a count of at least 4 tokens, which the stream had, the usage says 3"),
    (
        counts_another_number,
        r"expected 4 tokens, the server counted 3, finish_reason 'stop'; .* ignore end-of-sequence",
    ),
    (counts_another_prompt, r"expected a prompt of 5 tokens, the server counted 6; a begin token or a chat template"),
    (counts_nothing, r"expected the usage at the end of the stream, as this server sent it before, got none after 4"),
    (never_done, r"expected the stream to end with \[DONE\], it ended without after 4 chunks"),
    (no_stream, r"expected a stream of events \(text/event-stream\), got application/json; does this server stream\?"),
    (too_busy, r"expected 200 from POST /completions, got 429 \(Retry-After: 7\): slow down; it is busy: .*retries=N"),
    (falls_over, r"expected 200 from POST /completions, got 500: <html>Internal Server Error</html>; see the server's"),
    (redirects, r"expected 200 from POST /completions, got 307: no words; see the server's log"),
    (no_http, r"broken HTTP came in front of its answer"),
]


@pytest.mark.parametrize(("behaviour", "message"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_misbehaving_server_gets_one_clear_line_and_the_next_request_works(
    stub: Any, drive: Any, behaviour: Any, message: str
) -> None:
    driver = drive()
    stub.behaviours.append(behaviour)
    with pytest.raises(EngineError) as raised:
        driver.request(PROMPT, 4)
    text = str(raised.value)
    assert text.startswith("openai_server: ")
    assert "\n" not in text
    assert re.search(message, text), text
    assert driver.request(PROMPT, 4)[1] == 4


def test_another_count_of_the_prompt_is_a_failed_round_trip(stub: Any, drive: Any) -> None:
    driver = drive()
    stub.behaviours.append(counts_another_prompt)
    with pytest.raises(RoundTripError):
        driver.request(PROMPT, 4)


def test_a_server_that_is_silent_is_given_up_in_time(stub: Any, drive: Any) -> None:
    driver = drive(timeout_seconds="0.3")
    over = threading.Event()
    stub.behaviours.append(lambda talk, body: over.wait(20))
    with pytest.raises(
        EngineError, match=r"expected the first token from .* within 0\.3 s, got nothing; .*raise timeout"
    ):
        driver.request(PROMPT, 4)
    over.set()


def test_slow_headers_in_pieces_are_one_answer(stub: Any, drive: Any) -> None:
    driver = drive()

    def slowly(talk: Any, body: dict[str, Any]) -> None:
        for piece in (
            b"HTTP/1.1 20",
            b"0 OK\r\nContent-Ty",
            b"pe: text/event-stream\r\n",
            b"Transfer-Encoding: chunked\r\n\r",
        ):
            talk.raw(piece)
            threading.Event().wait(0.02)
        talk.raw(b"\n")
        for number in range(4):
            talk.token(f"w{number}")
        talk.usage(len(PROMPT), 4)
        talk.done()
        talk.end()

    stub.behaviours.append(slowly)
    assert driver.request(PROMPT, 4)[:2] == ([NO_ID] * 4, 4)


def test_a_character_cut_by_chunks_is_still_one_token(stub: Any, drive: Any) -> None:
    driver = drive()

    def cut(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        data = b"data: " + json.dumps({"choices": [{"text": "🦙"}]}, ensure_ascii=False).encode() + b"\n\n"
        middle = data.index("🦙".encode()) + 2
        talk.chunk(data[:middle])
        threading.Event().wait(0.02)
        talk.chunk(data[middle:])
        talk.token("b")
        talk.usage(len(PROMPT), 2)
        talk.done()
        talk.end()

    stub.behaviours.append(cut)
    assert driver.request(PROMPT, 2)[:2] == ([NO_ID, NO_ID], 2)


def test_several_tokens_a_chunk_leave_fewer_stamps_and_the_true_total(stub: Any, drive: Any) -> None:
    driver = drive()

    def in_pairs(talk: Any, body: dict[str, Any]) -> None:
        start(talk, body, tokens=3)
        talk.usage(len(PROMPT), 6)
        talk.done()
        talk.end()

    stub.behaviours.append(in_pairs)
    yielded, total, metrics = driver.request(PROMPT, 6)
    assert (len(yielded), total, metrics["stream_chunk_count"]) == (3, 6, 3.0)


@pytest.fixture
def words(stub: Any, tiny: ModelInfo) -> list[int]:
    """Ids that read back as themselves; the stub counts texts as the model does."""
    tokenizer = load_tokenizer(tiny.path)
    stub.count = lambda text: len(tokenizer.encode(text))
    return tokenizer.encode("the river")


def test_the_chunk_that_names_a_role_is_no_token(stub: Any, drive: Any, words: list[int]) -> None:
    driver = drive(api="chat")
    said, go_on = threading.Event(), threading.Event()

    def chat(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        talk.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        said.set()
        go_on.wait(20)
        talk.event({"choices": [{"delta": {"content": "a"}}]})
        talk.event({"choices": [{"delta": {"content": "b"}, "finish_reason": "length"}]})
        talk.usage(len(words), 2)
        talk.done()
        talk.end()

    stub.behaviours.append(chat)
    hook, session = driver.hook, driver.session
    hook.cmp_prepare(session=session, token_ids=words, output_tokens=2)
    arguments = {"session": session, "token_ids": words, "output_tokens": 2}
    prefill = threading.Thread(target=hook.cmp_prefill, kwargs=arguments)
    prefill.start()
    assert said.wait(20)
    prefill.join(0.2)
    assert prefill.is_alive(), "the role chunk was taken for the first token"
    go_on.set()
    prefill.join(20)
    assert len(list(hook.cmp_decode(session=session, n_tokens=1))) == 1


def test_content_in_the_role_chunk_is_the_first_token(stub: Any, drive: Any, words: list[int]) -> None:
    driver = drive(api="chat")

    def eager(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        talk.event({"choices": [{"delta": {"role": "assistant", "content": "a"}}]})
        talk.event({"choices": [{"delta": {"reasoning_content": "b"}}]})
        talk.usage(len(words), 2)
        talk.done()
        talk.end()

    stub.behaviours.append(eager)
    assert driver.request(words, 2)[:2] == ([NO_ID, NO_ID], 2)
    assert stub.requests[-1]["messages"] == [{"role": "user", "content": "the river"}]


def test_a_chat_template_that_adds_tokens_is_told_at_load(stub: Any, drive: Any, words: list[int]) -> None:
    plain = stub.count
    stub.count = lambda text: plain(text) + 7
    with pytest.raises(RoundTripError, match="or a chat template was added"):
        drive(api="chat")


def test_a_retry_is_made_only_where_allowed_and_counted(stub: Any, drive: Any) -> None:
    driver = drive(retries="1")

    def busy(talk: Any, body: dict[str, Any]) -> None:
        talk.reply(503, {"error": "loading"}, "Retry-After: 0")

    stub.behaviours.append(busy)
    assert driver.request(PROMPT, 3)[2]["retry_count"] == 1.0
    stub.behaviours += [busy, busy]
    with pytest.raises(EngineError, match="got 503"):
        driver.request(PROMPT, 3)
    assert driver.request(PROMPT, 3)[2]["retry_count"] == 0.0


def test_a_half_finished_answer_is_never_asked_for_again(stub: Any, drive: Any) -> None:
    driver = drive(retries="5")
    stub.behaviours.append(close_early)
    streamed = len(stub.requests)
    with pytest.raises(EngineError):
        driver.request(PROMPT, 4)
    assert len(stub.requests) == streamed + 1


def test_connections_are_kept_and_a_reconnect_inside_a_request_is_counted(stub: Any, drive: Any) -> None:
    driver = drive()
    driver.request(PROMPT, 2)
    opened = stub.connections
    assert driver.request(PROMPT, 2)[2]["reconnect_count"] == 0.0
    assert stub.connections == opened
    stub.behaviours.append(lambda talk, body: talk.close())
    assert driver.request(PROMPT, 2)[2]["reconnect_count"] == 1.0
    assert stub.connections == opened + 1


def test_a_server_that_closes_between_requests_costs_no_measured_reconnect(stub: Any, drive: Any) -> None:
    driver = drive()

    def last(talk: Any, body: dict[str, Any]) -> None:
        start(talk, body, tokens=2)
        talk.usage(len(PROMPT), 2)
        talk.done()
        talk.end()
        talk.close()

    stub.behaviours.append(last)
    driver.request(PROMPT, 2)
    threading.Event().wait(0.05)
    assert driver.request(PROMPT, 2)[2]["reconnect_count"] == 0.0


def test_a_connection_whose_last_byte_comes_late_is_still_kept(stub: Any, drive: Any) -> None:
    driver = drive()

    def dawdling(talk: Any, body: dict[str, Any]) -> None:
        start(talk, body, tokens=2)
        talk.usage(len(PROMPT), 2)
        talk.done()
        threading.Event().wait(0.05)
        talk.end()

    driver.request(PROMPT, 2)
    opened = stub.connections
    stub.behaviours.append(dawdling)
    driver.request(PROMPT, 2)
    threading.Event().wait(0.2)
    driver.request(PROMPT, 2)
    assert stub.connections == opened


def test_a_request_left_in_the_middle_is_hung_up_on_and_waited_for(stub: Any, drive: Any) -> None:
    driver = drive()
    gone = threading.Event()

    def endless(talk: Any, body: dict[str, Any]) -> None:
        start(talk, body)
        try:
            while True:
                talk.token(" more")
                threading.Event().wait(0.01)
        except OSError:
            gone.set()
            raise

    stub.behaviours.append(endless)
    hook, session = driver.hook, driver.session
    hook.cmp_prepare(session=session, token_ids=PROMPT, output_tokens=50)
    hook.cmp_prefill(session=session, token_ids=PROMPT, output_tokens=50)
    asked = len(stub.plain)
    hook.cmp_reset(session=session)
    assert gone.wait(20)
    assert len(stub.plain) == asked + 1
    assert driver.request(PROMPT, 3)[1] == 3


def test_a_server_that_never_counts_is_believed_where_chunks_prove_it(stub: Any, drive: Any) -> None:
    stub.always = counts_nothing
    driver = drive()
    asked = len(stub.plain)
    assert driver.request(PROMPT, 4)[1] == 4
    assert len(stub.plain) == asked


def test_a_server_that_never_counts_is_asked_again_where_chunks_prove_nothing(stub: Any, drive: Any) -> None:
    stub.always = counts_nothing
    driver = drive()
    yielded, total, _ = driver.request(PROMPT, 6)
    assert (len(yielded), total) == (4, 6)
    assert stub.plain[-1]["max_tokens"] == 6
    assert stub.plain[-1]["prompt"] == PROMPT


def test_more_than_fits_is_refused_before_it_is_sent(stub: Any, drive: Any) -> None:
    driver = drive()
    sent = len(stub.requests)
    with pytest.raises(ContextOverflow, match="60 prompt and 6 output tokens need 65 places, the context holds 64"):
        driver.request(list(range(60)), 6)
    assert len(stub.requests) == sent


@pytest.mark.parametrize("outside", [-1, 2**40])
def test_an_id_outside_the_vocabulary_is_refused_before_it_is_sent(stub: Any, drive: Any, outside: int) -> None:
    driver = drive()
    sent = len(stub.requests)
    with pytest.raises(EngineError, match=rf"expected ids in \[0, \d+\), got {outside} at position 2"):
        driver.request([1, 2, outside], 6)
    assert len(stub.requests) == sent


def test_a_context_error_of_the_server_is_an_overflow(stub: Any, drive: Any) -> None:
    driver = drive()
    stub.behaviours.append(
        lambda talk, body: talk.reply(400, {"error": {"message": "maximum context length is 32 tokens"}})
    )
    with pytest.raises(ContextOverflow, match="maximum context length is 32"):
        driver.request(PROMPT, 4)
