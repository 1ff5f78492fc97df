"""What host and worker say to each other, over one socket that engines know nothing of.

A message is the four bytes "CMP1", a 4-byte little-endian length and that many bytes of msgpack: one map. The
host sends `{"op": ..., ...}`, the worker answers each with `{"ok": ...}` or `{"error": {...}}`. Engines print on
stdout and stderr as they like: both go to the launch's log.

`Progress` is 16 bytes of shared memory beside the socket. The worker writes where it is with a plain store, so
that after a crash or a hang the host can say in which phase and at which token, and nobody wakes for it.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import traceback
from collections.abc import Sequence
from typing import Any

import msgspec

from enginecmp.errors import CmpError, LaunchError

MAX_MESSAGE_BYTES = 1 << 31
"""Logits are the largest message: 8,192 positions of a vocabulary of 50,000 are 1.6 GB."""

MAGIC = b"CMP1"

_HEAD = struct.Struct("<4sI")
_PROGRESS = struct.Struct("<qq")

PHASES = (
    *("start", "probe", "load", "idle", "prepare", "prefill", "decode", "score", "metrics", "unload"),
    *("wait", "step"),
)
"""Where a worker can be, by number; "wait" is for requests to arrive, "step" one of several requests at once."""


def describe(error: BaseException) -> dict[str, str]:
    """Return an exception as the host shows it: one line, and the traceback for `--debug`."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = f"out of memory: {error}" if str(error) else "out of memory"
    elif isinstance(error, CmpError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return {
        "type": type(error).__name__,
        "message": " ".join(text.split()),
        "traceback": "".join(traceback.format_exception(error)),
    }


class Channel:
    """One end of the socket.

    Args:
        sock: a connected stream socket; the channel owns it from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: dict[str, Any]) -> None:
        """Send one message.

        Raises:
            LaunchError: the other side is gone.
        """
        body = self._encoder.encode(message)
        try:
            self._socket.sendall(_HEAD.pack(MAGIC, len(body)))
            self._socket.sendall(body)
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

    def receive(self, timeout_seconds: float | None = None) -> dict[str, Any] | None:
        """Return the next message, or None when the other side closed.

        Args:
            timeout_seconds: silence allowed before each part of the message.

        Raises:
            TimeoutError: nothing came in time.
            LaunchError: what came is not a message.
        """
        self._socket.settimeout(timeout_seconds)
        head = self._read(_HEAD.size)
        if head is None:
            return None
        magic, length = _HEAD.unpack(head)
        if magic != MAGIC or length > MAX_MESSAGE_BYTES:
            msg = f"broke the protocol: expected a message head, got bytes {bytes(head)!r}"
            raise LaunchError(msg)
        body = self._read(length)
        if body is None:
            msg = f"broke the protocol: message of {length} bytes ended early"
            raise LaunchError(msg)
        try:
            message = msgspec.msgpack.decode(body)
        except msgspec.DecodeError as error:
            msg = f"broke the protocol: expected msgpack, got bytes {bytes(body[:16])!r}"
            raise LaunchError(msg) from error
        if not isinstance(message, dict):
            msg = f"broke the protocol: expected a map, got {type(message).__name__}"
            raise LaunchError(msg)
        return message

    def _read(self, n_bytes: int) -> bytearray | None:
        data = bytearray(n_bytes)
        view = memoryview(data)
        filled = 0
        while filled < n_bytes:
            try:
                got = self._socket.recv_into(view[filled:])
            except ConnectionError:
                got = 0
            if got == 0:
                return None
            filled += got
        return data

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Progress:
    """Shared memory that says where a worker is: a phase number and a token count.

    Args:
        fd: a file descriptor of at least 16 bytes, shared by both processes.
    """

    SIZE = _PROGRESS.size

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)

    def set(self, phase: int, tokens: int = 0) -> None:
        """Store where the worker is; no system call."""
        _PROGRESS.pack_into(self._map, 0, phase, tokens)

    def get(self) -> tuple[str, int]:
        """Return (phase name, tokens so far)."""
        phase, tokens = _PROGRESS.unpack_from(self._map, 0)
        return (PHASES[phase] if 0 <= phase < len(PHASES) else f"phase {phase}"), tokens

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def shared_progress() -> tuple[int, Progress]:
    """Return a new anonymous shared file descriptor and its `Progress`."""
    fd = os.memfd_create("cmp-progress")
    os.ftruncate(fd, Progress.SIZE)
    return fd, Progress(fd)
