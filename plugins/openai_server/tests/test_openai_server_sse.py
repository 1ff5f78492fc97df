"""Events out of bytes, wherever the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginecmp import EngineError
from enginecmp_openai_server.sse import EventParser

# From WHATWG HTML, section 9.2.6: a comment, fields that are not data, several data lines, all three line ends.
STREAM = (
    ": ping\r\nevent: x\ndata: eins\r\rdata:zwei\ndata: drei\n\nid: 7\n\n"
    "data: vier\r\ndata: fünf\r\n\r\ndata: žluťoučký 🦙\r\n\r\ndata\ndata: [DONE]\n\n"
)
EVENTS = ["eins", "zwei\ndrei", "vier\nfünf", "žluťoučký 🦙", "[DONE]"]


def parsed(pieces: list[bytes]) -> list[str]:
    parser = EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [event.decode() for event in found + parser.finish()]


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
    assert parser.feed(b"\n") == [b"a"]


@pytest.mark.parametrize("tail", ["data: last", "data: last\n", "data: last\r"])
def test_the_end_of_the_stream_ends_the_last_event(tail: str) -> None:
    assert parsed([tail.encode()]) == ["last"]


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    parser = EventParser()
    parser.feed(b"x" * (1 << 24))
    with pytest.raises(EngineError, match="over 16 MiB"):
        parser.feed(b"x")
