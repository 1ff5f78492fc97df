"""What host and node say to each other over a channel.

A message is a 4-byte little-endian length and that many bytes of msgpack: one of the structs below, by its tag. The
node speaks first (`Hello`); then the host asks and the node answers, one question at a time. Only `Stop` may come while
a run is under way; an end of file means the same.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from enginecmp.errors import CmpError

CHUNK_BYTES = 1 << 18
MOST_MESSAGE_BYTES = 1 << 20

_LENGTH = struct.Struct("<I")


class ConnectionLost(CmpError):
    """The other end is gone, or says what it should not."""


class Message(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """One message."""


class Hello(Message):
    """From the node, first of all: its version of enginecmp."""

    version: str


class Put(Message):
    """To the node: a file it will need. Answer: `At`, or `Send`, after which `Chunk`s follow and `At` is the answer."""

    sha256: str
    name: str
    bytes: int


class Send(Message):
    """From the node: it does not have the file."""


class At(Message):
    """From the node: the file is there, whole and with the right hash."""

    path: str


class Chunk(Message):
    """Part of a file, in either direction; an empty one ends it."""

    data: bytes


class Run(Message):
    """To the node: run `cmp run` with these words, or go on with what an earlier start of that job left.

    Attributes:
        job: name of the job's folder on the node.
        node: name of the node, for the manifest.
        words: options of `cmp run`.
        price_per_hour: of the node, for the manifest.
    """

    job: str
    node: str
    words: list[str]
    price_per_hour: float | None = None


class Stop(Message):
    """To the node, while a run is under way: end it as Ctrl-C does."""


class Line(Message):
    """From the node, while a run is under way: a line that it printed."""

    text: str


class Ended(Message):
    """From the node: the run ended.

    Attributes:
        code: exit code of `cmp run`; negative for a signal.
        runs: folders of runs that the job has by now.
    """

    code: int
    runs: list[str]


class Fetch(Message):
    """To the node: send a run's folder. Answer: `File`s, each with its `Chunk`s, and `Done`."""

    job: str
    run: str


class File(Message):
    """From the node: a regular file of the folder that was asked for; its `Chunk`s follow.

    Attributes:
        path: below that folder, with "/" between its parts.
    """

    path: str


class Drop(Message):
    """To the node: the job's folder is no longer needed. Answer: `Done`."""

    job: str


class Done(Message):
    """From the node: it is done."""


class Refused(Message):
    """From the node, in place of any answer: why not."""

    error: str


Known = Hello | Put | Send | At | Chunk | Run | Stop | Line | Ended | Fetch | File | Drop | Done | Refused

_decoder: msgspec.msgpack.Decoder[Known] = msgspec.msgpack.Decoder(Known)


def encoded(message: Message) -> bytes:
    """Return a message as it goes over a channel."""
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Reads messages.

    Args:
        read: returns up to so many bytes, b"" at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._kept = b""

    def receive(self) -> Known | None:
        """Return the next message; None at an end of file between two of them.

        Raises:
            ConnectionLost: the file ends inside a message, or what came is none.
        """
        head = self._take(_LENGTH.size)
        if head is None:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > MOST_MESSAGE_BYTES:
            msg = f"expected a message of at most {MOST_MESSAGE_BYTES} bytes, got the bytes {head!r}"
            raise ConnectionLost(msg)
        body = self._take(length)
        if body is None:
            msg = "the connection ended inside a message"
            raise ConnectionLost(msg)
        try:
            message: Known = _decoder.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            msg = f"expected a message of this version of enginecmp, got another ({error})"
            raise ConnectionLost(msg) from error
        return message

    def _take(self, count: int) -> bytes | None:
        while len(self._kept) < count:
            more = self._read(CHUNK_BYTES)
            if not more:
                if self._kept:
                    msg = "the connection ended inside a message"
                    raise ConnectionLost(msg)
                return None
            self._kept += more
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken
