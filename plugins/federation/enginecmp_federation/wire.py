"""Messages over a socket: eight bytes of length, then the message."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("!Q")
_MOST_BYTES = 1 << 30
FRAMING_BYTES = _LENGTH.size


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message whole."""
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def receive(connection: socket.socket) -> bytes | None:
    """Return the next message; None where the other side has closed.

    Raises:
        ValueError: it says to be larger than 1 GiB.
        OSError: the connection broke, or was silent for longer than its timeout.
    """
    head = _exactly(connection, _LENGTH.size)
    if head is None:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > _MOST_BYTES:
        msg = f"expected a message of at most {_MOST_BYTES} bytes, got one of {length}"
        raise ValueError(msg)
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    found = bytearray(count)
    view, at = memoryview(found), 0
    while at < count:
        got = connection.recv_into(view[at:])
        if not got:
            return None
        at += got
    return bytes(found)
