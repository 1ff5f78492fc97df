"""Events out of bytes, wherever the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginecmp import EngineError
from enginecmp_openai_server.sse import LONGEST_EVENT_BYTES, Event, EventParser

# From WHATWG HTML, section 9.2.6: a byte order mark, a comment, fields that are not data, several data lines, all three
# line ends, a field without a colon.
STREAM = (
    "\ufeff: ping\r\nevent: x\ndata: eins\r\rdata:zwei\ndata: drei\n\nid: 7\n\n"
    "data: vier\r\ndata: fünf\r\n\r\ndata: žluťoučký 🦙\r\n\r\ndata\ndata: [DONE]\n\n"
)
EVENTS = ["x|eins", "|zwei\ndrei", "|vier\nfünf", "|žluťoučký 🦙", "|\n[DONE]"]


def parsed(pieces: list[bytes]) -> list[str]:
    parser = EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [f"{event.kind}|{event.data.decode()}" for event in found + parser.finish()]


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts: list[int]) -> None:
    whole = STREAM.encode()
    edges = [0, *sorted(cuts), len(whole)]
    assert parsed([whole[a:b] for a, b in itertools.pairwise(edges)]) == EVENTS


def test_events_are_the_same_byte_by_byte() -> None:
    assert parsed([bytes([byte]) for byte in STREAM.encode()]) == EVENTS


def test_an_event_is_there_with_its_empty_line_and_not_before() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\n") == []
    assert parser.feed(b"\n") == [Event("", b"a")]


@pytest.mark.parametrize("tail", ["data: last", "data: last\n", "data: last\r"])
def test_the_end_of_the_stream_ends_the_last_event(tail: str) -> None:
    assert parsed([tail.encode()]) == ["|last"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    parser = EventParser()
    parser.feed(b"x" * LONGEST_EVENT_BYTES)
    with pytest.raises(EngineError, match="expected events of at most 4 MiB, got one without an end"):
        parser.feed(b"x")


def test_an_event_without_end_is_refused_like_a_line_without_end() -> None:
    parser = EventParser()
    for _ in range(LONGEST_EVENT_BYTES >> 10):
        parser.feed(b"data: " + b"x" * 1017 + b"\n")
    with pytest.raises(EngineError, match="got one without an end"):
        parser.feed(b":\n")


def test_one_byte_order_mark_is_no_text_and_a_second_one_is() -> None:
    assert parsed([b"\xef\xbb", b"\xbfdata: a\n\n"]) == ["|a"]
    assert parsed([b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n"]) == ["|b"]
    assert parsed([b"data: \xef\xbb\xbf\n\n"]) == ["|\ufeff"]


@pytest.mark.parametrize("stream", ["event: error\ndata: broken\n\n", "error: broken\n\n", "event:error\rdata:broken"])
def test_an_error_is_told_apart_by_its_name(stream: str) -> None:
    assert parsed([stream.encode()]) == ["error|broken"]


def test_what_is_no_event_is_kept_to_be_shown() -> None:
    parser = EventParser()
    assert parser.feed(b'{"error": "quota"}\n') == []
    assert parser.stray == b'{"error": "quota"}\n'


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_give_the_same_events_wherever_they_are_cut(content: bytes, cut: int) -> None:
    def events(pieces: list[bytes]) -> list[Event]:
        parser = EventParser()
        return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()

    assert events([content[:cut], content[cut:]]) == events([content])
