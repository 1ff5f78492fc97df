"""Sampled ids and answers that end by themselves: what the server is told, and how many tokens are taken for true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from enginecmp import ENDED, NO_ID, Decoding, EngineError, Request
from enginecmp.worker.generate import choose, generate

SAMPLED = Decoding(temperature=0.5, top_k=7, top_p=0.9, seed=11)


def run(driver: Any, output_tokens: int, decoding: Decoding) -> tuple[list[int], int]:
    """Return what was yielded, and the tokens in all, driven as the worker does it."""
    yielded: list[int] = []
    hook, session = driver.hook, driver.session
    hook.cmp_reset(session=session)
    choose(hook, session, decoding)
    hook.cmp_prepare(session=session, token_ids=[5, 6, 7], output_tokens=output_tokens)
    total = generate(hook, session, [5, 6, 7], output_tokens, yielded.append, decoding.end_ids)
    hook.cmp_metrics(session=session)
    return yielded, len(yielded) if total is None else total


def ends_after(chunks: int, counted: int, reason: str = "stop") -> Callable[..., None]:
    """Return a server whose answer has so many chunks with content, and a count."""

    def behaviour(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for number in range(chunks):
            talk.token(f" w{number}")
        talk.finish(reason)
        talk.usage(talk.stub.prompt_tokens(body), counted)
        talk.done()
        talk.end()

    return behaviour


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ("vllm", {"top_k": 7, "min_p": 0.0}),
        ("sglang", {"top_k": 7, "min_p": 0.0}),
        ("llama_server", {"top_k": 7, "min_p": 0.0, "samplers": ["temperature", "top_k", "top_p"]}),
    ],
)
def test_a_server_is_told_how_to_draw_and_nothing_else_is_cut_off(
    stub: Any, drive: Callable[..., Any], server: str, told: dict[str, Any]
) -> None:
    stub.routes["/flush_cache"] = {}
    driver = drive(server=server)
    assert run(driver, 3, SAMPLED)[1] == 3
    body = stub.requests[-1]
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.5, 0.9, 11)
    assert {key: body[key] for key in told} == told
    # A fixed number of tokens is still asked for.
    assert body["ignore_eos"] is True
    run(driver, 3, Decoding())
    assert stub.requests[-1]["temperature"] == 0
    assert not {"top_p", "seed", *told}.intersection(stub.requests[-1])


def test_a_server_of_no_known_kind_has_no_top_k(stub: Any, drive: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="expected no top_k"):
        run(drive(), 3, SAMPLED)
    assert run(drive(), 3, Decoding(temperature=0.5, top_p=0.9, seed=1))[1] == 3
    assert "top_k" not in stub.requests[-1]


def test_another_order_of_samplers_is_refused(drive: Callable[..., Any]) -> None:
    driver = drive(server="llama_cpp_python")
    with pytest.raises(EngineError, match="cuts by top-p before"):
        run(driver, 3, Decoding(temperature=0.5, top_p=0.9))


def test_an_answer_may_end_where_that_was_asked_for_alone(stub: Any, drive: Callable[..., Any]) -> None:
    driver = drive(server="vllm")
    stub.behaviours = [ends_after(4, 5)]  # the end token has no text
    assert run(driver, 9, Decoding(end_ids=(2, 3))) == ([NO_ID] * 4, 5)
    body = stub.requests[-1]
    assert body["stop_token_ids"] == [2, 3]
    assert not {"ignore_eos", "min_tokens"}.intersection(body)
    assert run(driver, 9, Decoding(end_ids=(2,)))[1] == 9
    stub.behaviours = [ends_after(4, 5)]
    with pytest.raises(EngineError, match="expected 9 tokens"):
        run(driver, 9, Decoding())


@pytest.mark.parametrize(("chunks", "counted", "reason"), [(4, 5, "length"), (4, 12, "stop"), (4, 3, "stop")])
def test_an_end_that_cannot_be_is_an_error(
    stub: Any, drive: Callable[..., Any], chunks: int, counted: int, reason: str
) -> None:
    driver = drive(server="vllm")
    stub.behaviours = [ends_after(chunks, counted, reason)]
    with pytest.raises(EngineError):
        run(driver, 9, Decoding(end_ids=(2,)))


def test_answers_of_a_batch_end_each_with_their_count(stub: Any, drive: Callable[..., Any]) -> None:
    driver = drive(server="vllm", max_sequences=2)
    hook, session = driver.hook, driver.session
    hook.cmp_reset(session=session)
    stub.behaviours = [ends_after(2, 3)]
    decoding = Decoding(end_ids=(2,))
    for name in "ab":
        request = Request(id=name, token_ids=[5, 6, 7], output_tokens=6, decoding=decoding)
        assert hook.cmp_submit(session=session, request=request)
    found: dict[str, list[tuple[Any, ...]]] = {"a": [], "b": []}
    while session.flights:
        for name, *rest in hook.cmp_step(session=session, wake=-1):
            found[name].append(tuple(rest))
    ended, whole = sorted(found.values(), key=len)
    assert ended == [(NO_ID,), (NO_ID,), (ENDED, 3)]
    assert whole == [(NO_ID,)] * 6


SCHEMA = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'


def says(*pieces: str, reason: str = "stop", counted: int | None = None) -> Callable[..., None]:
    """Return a server whose answer has these chunks, with a count or none."""

    def behaviour(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for piece in pieces:
            talk.token(piece)
        talk.finish(reason)
        if counted is not None:
            talk.usage(talk.stub.prompt_tokens(body), counted)
        talk.done()
        talk.end()

    return behaviour


@pytest.mark.parametrize(
    ("server", "field"),
    [("vllm", "response_format"), ("openai", "response_format"), ("llama_server", "json_schema")],
)
def test_a_server_is_told_the_schema_and_what_it_says_is_kept(
    stub: Any, drive: Callable[..., Any], server: str, field: str
) -> None:
    driver = drive(server=server)
    stub.behaviours = [says('{"ok"', ": true", "}", counted=4)]
    assert run(driver, 9, Decoding(end_ids=(2,), json_schema=SCHEMA))[1] == 4
    assert driver.hook.cmp_text(session=driver.session) == '{"ok": true}'
    told = stub.requests[-1][field]
    schema = told["json_schema"]["schema"] if field == "response_format" else told
    assert schema["properties"] == {"ok": {"type": "boolean"}}
    stub.behaviours = []
    run(driver, 3, Decoding())
    assert driver.hook.cmp_text(session=driver.session) is None
    assert not {"response_format", "json_schema", "grammar"}.intersection(stub.requests[-1])


def test_a_server_that_takes_grammars_is_sent_one(stub: Any, drive: Callable[..., Any]) -> None:
    pytest.importorskip("llama_cpp")
    driver = drive(server="llama_cpp_python")
    stub.behaviours = [says('{"ok": true', "}", counted=2)]
    run(driver, 9, Decoding(end_ids=(2,), json_schema=SCHEMA))
    sent = [body["grammar"] for body in stub.requests if "grammar" in body]
    assert sent
    assert all("root ::=" in grammar for grammar in sent)
    with pytest.raises(EngineError, match=r"expected a JSON Schema that llama\.cpp makes a grammar of"):
        run(driver, 9, Decoding(end_ids=(2,), json_schema='{"$ref": "#/nowhere"}'))
