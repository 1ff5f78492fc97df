from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from enginecmp.errors import LaunchError
from enginecmp.format.phases import Phase
from enginecmp.wire.protocol import Channel, Progress, shared_progress

Pair = tuple[Channel, Channel, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The host's end, the worker's end, and the worker's bare socket."""
    left, right = socket.socketpair()
    host, worker = Channel(left), Channel(right)
    yield host, worker, right
    host.close()
    worker.close()


def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    host, worker, _ = pair
    messages = [{"op": "load", "n": [1, 2, 3]}, {"data": b"\x00" * 100_000}, {"text": "naïve ✓"}]
    sender = threading.Thread(target=lambda: [host.send(message) for message in messages])
    sender.start()
    assert [worker.receive(5) for _ in messages] == messages
    sender.join()


def test_a_closed_end_is_none(pair: Pair) -> None:
    host, worker, _ = pair
    worker.close()
    assert host.receive(5) is None


def test_silence_ends_in_a_timeout(pair: Pair) -> None:
    host, _worker, _ = pair
    with pytest.raises(TimeoutError):
        host.receive(0.05)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"hello, I am not a protocol",
        struct.pack("<4sI", b"CMP1", 5) + b"\xc1\xc1\xc1\xc1\xc1",
        struct.pack("<4sI", b"CMP1", 1) + b"\x05",
        struct.pack("<4sI", b"CMP1", 0xFFFFFFFF),
    ],
)
def test_garbage_is_named_as_such(pair: Pair, bytes_sent: bytes) -> None:
    host, _worker, raw = pair
    raw.sendall(bytes_sent)
    with pytest.raises(LaunchError, match="broke the protocol"):
        host.receive(5)


def test_a_message_that_ends_early_is_named_as_such(pair: Pair) -> None:
    host, worker, raw = pair
    raw.sendall(struct.pack("<4sI", b"CMP1", 100) + b"\x80")
    worker.close()
    with pytest.raises(LaunchError, match="ended early"):
        host.receive(5)


def test_progress_is_seen_through_another_mapping() -> None:
    fd, mine = shared_progress()
    theirs = Progress(fd)
    os.close(fd)
    mine.set(Phase.DECODE, 17)
    assert theirs.get() == (Phase.DECODE, 17)
    mine.close()
    theirs.close()
