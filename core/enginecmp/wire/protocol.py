"""What host and worker say to each other, over one socket that engines know nothing of.

A message is the four bytes "CMP1", a 4-byte little-endian length and that many bytes of msgpack: one map. The
host sends `{"op": ..., ...}`, the worker answers each with `{"ok": ...}` or `{"error": {...}}`
(`enginecmp.wire.answers`). Engines print on stdout and stderr as they like: both go to the launch's log.

`Progress` is 16 bytes of shared memory beside the socket. The worker writes where it is with a plain store, so
that after a crash or a hang the host can say in which phase and at which token, and nobody wakes for it.
"""

from __future__ import annotations

import mmap
import socket
import struct
import time
import traceback
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec

from enginecmp.errors import CmpError, LaunchError
from enginecmp.format.phases import Phase
from enginecmp.format.text import plain
from enginecmp.wire.answers import MAX_MESSAGE_BYTES, TEXT_CHARACTERS
from enginecmp.wire.descriptors import clear_of_standard_streams, shared_memory

MAX_TOKENS = 1 << 31
"""A worker that counts more than that in its shared memory is not believed."""

MAGIC = b"CMP1"

_HEAD = struct.Struct("<4sI")
_PROGRESS = struct.Struct("<qq")
_TRACEBACK_CHARACTERS = 20_000


class WrongMessage(LaunchError):
    """A message came, and it is not the one that was due."""


def describe(error: BaseException) -> dict[str, str]:
    """Return an exception as the host shows it: one line, and the traceback for `--debug`; both short."""
    name = plain(type(error).__name__, 100)
    try:
        said = str(error)
    except Exception:  # an exception of an engine may be unable to say anything
        said = "it cannot say what is wrong"
    text = plain(said, TEXT_CHARACTERS)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = f"out of memory: {text}" if text else "out of memory"
    elif not isinstance(error, CmpError):
        text = f"{name}: {text}" if text else name
    return {"type": name, "message": text, "traceback": _traceback(error, len(said))}


def _traceback(error: BaseException, characters: int) -> str:
    """Return where an exception was raised, its beginning and its end where that is long."""
    try:
        if characters > TEXT_CHARACTERS:
            lines = traceback.format_tb(error.__traceback__)
        else:
            lines = traceback.format_exception(error)
    except Exception:  # the same exception, or a chain of thousands
        return ""
    text = "".join(lines).encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= _TRACEBACK_CHARACTERS:
        return text
    half = _TRACEBACK_CHARACTERS // 2
    return f"{text[:half]}\n[...]\n{text[-half:]}"


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def decode(body: bytes | bytearray, kind: Any) -> Any:
    """Return a message's body as `kind`.

    Raises:
        LaunchError: it is no msgpack.
        WrongMessage: it is something else; says what was expected and what it got.
    """
    try:
        return _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        # "Expected `int`, got `str` - at `$.ok.start_ns`", "Object missing required field `ids` - at `$.ok`"
        text = plain(str(error), 300).replace("`", "").replace("$.", "").replace(" - at ", " at ")
        text = text.replace("Object missing required field", "expected an object with the field")
        msg = f"broke the protocol: {text[:1].lower()}{text[1:]}"
    except msgspec.DecodeError as error:
        msg = f"broke the protocol: expected msgpack, got bytes {bytes(body[:16])!r}"
        raise LaunchError(msg) from error
    except UnicodeDecodeError:
        msg = "broke the protocol: expected text in UTF-8, got other bytes"
    except RecursionError:
        msg = "broke the protocol: expected an answer, got one that is nested too deep"
    raise WrongMessage(msg)


class Channel:
    """One end of the socket.

    Args:
        sock: a connected stream socket; the channel owns it from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()
        self._head = bytearray(_HEAD.size)
        self._body: bytearray | None = None
        self._filled = 0

    def send(self, message: dict[str, Any], timeout_seconds: float | None = None) -> None:
        """Send one message.

        Args:
            message: msgpack types.
            timeout_seconds: after that long without the other side taking all of it.

        Raises:
            TimeoutError: the other side did not take it in time.
            LaunchError: the other side is gone.
        """
        body = self._encoder.encode(message)
        self._socket.settimeout(timeout_seconds)
        try:
            self._socket.sendall(_HEAD.pack(MAGIC, len(body)))
            self._socket.sendall(body)
        except TimeoutError:
            raise
        except OSError as error:
            msg = f"worker is gone: {error.strerror or error}"
            raise LaunchError(msg) from error

    def send_files(self, files: Sequence[int]) -> None:
        """Send copies of file descriptors, right behind the message that announces them.

        Raises:
            LaunchError: the other side is gone.
        """
        try:
            socket.send_fds(self._socket, [b"F"], list(files))
        except OSError as error:
            msg = f"worker is gone: {error.strerror or error}"
            raise LaunchError(msg) from error

    def receive_files(self, n_files: int) -> list[int]:
        """Return the file descriptors that follow the message just received; they belong to the caller.

        Raises:
            LaunchError: other than that many came.
        """
        self._socket.settimeout(None)
        _, files, _, _ = socket.recv_fds(self._socket, 1, n_files)
        if len(files) != n_files:
            msg = f"broke the protocol: expected {n_files} file descriptors, got {len(files)}"
            raise LaunchError(msg)
        return files

    def fileno(self) -> int:
        """Return the socket's file descriptor, to wait on it together with others."""
        return self._socket.fileno()

    def receive(
        self, timeout_seconds: float | None = None, kind: Any = dict[str, Any], most_bytes: int = MAX_MESSAGE_BYTES
    ) -> Any:
        """Return the next message, or None when the other side closed.

        Args:
            timeout_seconds: until the whole message must be there. What came of it by then is kept for the next call.
            kind: type of the message.
            most_bytes: longer ones are refused before they are read.

        Raises:
            TimeoutError: it did not come in time.
            LaunchError: what came is not a message.
            WrongMessage: it is too long, or of another type.
        """
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        if self._body is None:
            if not self._fill(self._head, end):
                return None
            magic, length = _HEAD.unpack(self._head)
            if magic != MAGIC:
                msg = f"broke the protocol: expected a message head, got bytes {bytes(self._head)!r}"
                raise LaunchError(msg)
            if length > most_bytes:
                msg = f"broke the protocol: expected an answer of at most {most_bytes} bytes, got one of {length}"
                raise WrongMessage(msg)
            self._body, self._filled = bytearray(length), 0
        if not self._fill(self._body, end):
            msg = f"broke the protocol: message of {len(self._body)} bytes ended early"
            raise LaunchError(msg)
        body, self._body, self._filled = self._body, None, 0
        return decode(body, kind)

    def _fill(self, data: bytearray, end: float | None) -> bool:
        """Read on until `data` is full; False when the other side closed."""
        view = memoryview(data)
        while self._filled < len(data):
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                got = self._socket.recv_into(view[self._filled :])
            except ConnectionError:
                got = 0
            if got == 0:
                return False
            self._filled += got
        return True

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def channel_pair() -> tuple[Channel, int]:
    """Return the host's end of a new socket, and the descriptor of the child's: hand it on, then close it."""
    ours, theirs = (clear_of_standard_streams(end.detach()) for end in socket.socketpair())
    return Channel(socket.socket(fileno=ours)), theirs


class Progress:
    """Shared memory that says where a worker is: a phase number and a token count.

    Args:
        fd: a file descriptor of at least 16 bytes, shared by both processes.
    """

    SIZE = _PROGRESS.size

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)

    def set(self, phase: Phase, tokens: int = 0) -> None:
        """Store where the worker is; no system call."""
        _PROGRESS.pack_into(self._map, 0, phase, tokens)

    def get(self) -> tuple[Phase, int]:
        """Return (phase, tokens so far); whatever the worker wrote there, no number that cannot be."""
        phase, tokens = _PROGRESS.unpack_from(self._map, 0)
        return Phase(phase), tokens if 0 <= tokens < MAX_TOKENS else 0

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def shared_progress() -> tuple[int, Progress]:
    """Return a new anonymous shared file descriptor and its `Progress`."""
    fd = shared_memory("cmp-progress", Progress.SIZE)
    return fd, Progress(fd)
