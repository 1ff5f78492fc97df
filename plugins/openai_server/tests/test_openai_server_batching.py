"""Several requests at once: all are sent at once, each token is handed out once, one failure is one failure."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import pytest

from enginecmp import ENDED, NO_ID, EngineError, Request, RequestFailed
from enginecmp_openai_server import requests
from enginecmp_openai_server.client import Client


def request(name: str, output_tokens: int = 4) -> Request:
    return Request(id=name, token_ids=[20, 21, 22], output_tokens=output_tokens)


def submit(driver: Any, *requests: Request) -> list[bool]:
    return [driver.hook.cmp_submit(session=driver.session, request=each) for each in requests]


def step_until(driver: Any, enough: Any) -> list[list[tuple[str, int]]]:
    steps: list[list[tuple[str, int]]] = []
    while not enough(steps):
        steps.append(list(driver.hook.cmp_step(session=driver.session, wake=-1)))
        assert len(steps) < 20_000
    return steps


def test_requests_are_open_at_the_same_time(stub: Any, drive: Any) -> None:
    driver = drive(max_sequences=3)
    together = threading.Barrier(3)

    def all_at_once(talk: Any, body: dict[str, Any]) -> None:
        together.wait(20)
        good(talk, body)

    good = stub.always
    stub.behaviours += [all_at_once] * 3
    assert submit(driver, request("a"), request("b"), request("c"), request("d")) == [True, True, True, False]
    steps = step_until(driver, lambda steps: sum(map(len, steps)) == 12)
    assert Counter(pair for step in steps for pair in step) == {(name, NO_ID): 4 for name in "abc"}
    assert all(len({name for name, _ in step}) == len(step) for step in steps)
    assert driver.hook.cmp_step(session=driver.session, wake=-1) == []
    assert submit(driver, request("d")) == [True]


def test_a_step_without_tokens_sleeps_instead_of_spinning(stub: Any, drive: Any) -> None:
    driver = drive()
    go_on = threading.Event()
    good = stub.always

    def late(talk: Any, body: dict[str, Any]) -> None:
        go_on.wait(20)
        good(talk, body)

    stub.behaviours.append(late)
    submit(driver, request("a"))
    # A step may sleep a millisecond; a spinning one would be through a thousand in a fraction of that.
    threading.Timer(0.5, go_on.set).start()
    steps = step_until(driver, lambda steps: any(steps))
    assert 10 < len(steps) < 2_000


def test_several_tokens_a_chunk_end_with_the_word_that_it_is_over(stub: Any, drive: Any) -> None:
    driver = drive()

    def in_pairs(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for text in ("a b", "c d"):
            talk.token(text)
        talk.usage(3, 4)
        talk.done()
        talk.end()

    stub.behaviours.append(in_pairs)
    submit(driver, request("a"))
    steps = step_until(driver, lambda steps: steps[-1:] == [[("a", ENDED)]])
    assert [step for step in steps if step] == [[("a", NO_ID)], [("a", NO_ID)], [("a", ENDED)]]


def test_the_last_token_is_not_handed_out_before_the_count_is_checked(stub: Any, drive: Any) -> None:
    driver = drive()
    sent, go_on = threading.Event(), threading.Event()

    def miscounted(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        for _ in range(4):
            talk.token("x")
        sent.set()
        go_on.wait(20)
        talk.usage(3, 5)
        talk.done()
        talk.end()

    stub.behaviours.append(miscounted)
    submit(driver, request("a"))
    assert sent.wait(20)
    steps = step_until(driver, lambda steps: len(steps) > 50)
    assert sum(map(len, steps)) == 3
    go_on.set()
    with pytest.raises(RequestFailed, match="openai_server: request a: expected 4 tokens, the server counted 5"):
        step_until(driver, lambda steps: False)


def test_one_failure_leaves_the_others_in_flight(stub: Any, drive: Any) -> None:
    driver = drive(max_sequences=2)
    go_on = threading.Event()
    good = stub.always

    def late(talk: Any, body: dict[str, Any]) -> None:
        go_on.wait(20)
        good(talk, body)

    stub.behaviours += [late]
    submit(driver, request("good"))
    while len(stub.requests) < 2:  # the probe of cmp_load, and this one
        threading.Event().wait(0.01)
    stub.behaviours.append(lambda talk, body: talk.reply(500, {"error": "no memory"}))
    submit(driver, request("bad"))
    with pytest.raises(RequestFailed, match=r"request bad: expected 200 .* got 500: no memory") as failed:
        step_until(driver, lambda steps: False)
    assert failed.value.request_id == "bad"
    go_on.set()
    steps = step_until(driver, lambda steps: sum(map(len, steps)) == 4)
    assert {name for step in steps for name, _ in step} == {"good"}


def test_a_busy_server_is_asked_again_while_others_go_on(stub: Any, drive: Any) -> None:
    driver = drive(max_sequences=2, retries="1")
    stub.behaviours.append(lambda talk, body: talk.reply(429, {"error": "busy"}, "Retry-After: 0"))
    submit(driver, request("a"), request("b"))
    steps = step_until(driver, lambda steps: sum(map(len, steps)) == 8)
    assert Counter(name for step in steps for name, _ in step) == {"a": 4, "b": 4}
    metrics = driver.hook.cmp_metrics(session=driver.session)
    assert (metrics["retry_count"], metrics["reconnect_count"]) == (1.0, 0.0)


def test_reset_forgets_what_is_in_flight(stub: Any, drive: Any) -> None:
    driver = drive(max_sequences=2)
    hold = threading.Event()
    stub.behaviours.append(lambda talk, body: hold.wait(20))
    submit(driver, request("a"))
    driver.hook.cmp_reset(session=driver.session)
    hold.set()
    assert driver.hook.cmp_step(session=driver.session, wake=-1) == []
    assert submit(driver, request("a")) == [True]


def test_a_server_that_counts_nothing_is_not_believed_where_chunks_are_fewer(stub: Any, drive: Any) -> None:
    def uncounted(talk: Any, body: dict[str, Any]) -> None:
        talk.begin()
        talk.token("x")
        talk.finish()
        talk.done()
        talk.end()

    stub.always = uncounted
    driver = drive()
    submit(driver, request("a"))
    with pytest.raises(EngineError, match="1 chunks prove nothing; measure this server with one request at a time"):
        step_until(driver, lambda steps: False)


def test_a_step_ends_when_another_request_may_have_come(stub: Any, drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "WOKEN_STEP_SECONDS", 60.0)
    driver = drive(max_sequences=2)
    release = threading.Event()
    good = stub.always

    def late(talk: Any, body: dict[str, Any]) -> None:
        release.wait(20)
        good(talk, body)

    stub.behaviours.append(late)
    submit(driver, request("a", 2))
    wake = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        os.eventfd_write(wake, 1)
        assert driver.hook.cmp_step(session=driver.session, wake=wake) == []
        # Whoever woke it reads that.
        assert os.eventfd_read(wake) == 1
        release.set()
        pairs: list[Any] = []
        while len(pairs) < 2:
            pairs += driver.hook.cmp_step(session=driver.session, wake=wake)
        assert [name for name, _ in pairs] == ["a", "a"]
    finally:
        driver.hook.cmp_reset(session=driver.session)
        os.close(wake)
    # A descriptor of the same number in the next cell is another one.
    again = os.eventfd(0, os.EFD_NONBLOCK)
    assert driver.hook.cmp_step(session=driver.session, wake=again) == []
    driver.hook.cmp_reset(session=driver.session)
    os.close(again)


def test_headers_are_held_to_the_rules_once_for_each_answer(
    stub: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = drive()
    held: list[str] = []
    monkeypatch.setattr(Client, "require_uncompressed", lambda self, headers, what: held.append(what))
    driver.request([1, 2, 3], 8)
    assert len(held) == 1
