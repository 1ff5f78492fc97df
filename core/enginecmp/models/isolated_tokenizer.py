"""A model's tokenizer in a process of its own, for the host: no weights file can hang, crash or fill the host."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from enginecmp.errors import ModelError, UnsupportedModel
from enginecmp.format.text import plain
from enginecmp.models.tokenizer_server import CPU_SECONDS, MEMORY_BYTES

DEADLINE_SECONDS = 120.0
"""For one answer; the process itself stops after `CPU_SECONDS` of work."""

ANSWER_BYTES = 2**26
"""Most of one answer: the bundled texts have 10^5 tokens at most."""

_READ_BYTES = 2**16


class _Answer(msgspec.Struct):
    """One line of the server."""

    error: str | None = None
    kind: str = ""
    vocabulary: int = 0
    bos_id: int | None = None
    token_ids: list[int] = []
    text: str = ""


class IsolatedTokenizer:
    """The same as `tokenizer.ModelTokenizer`, in a child process that sleeps between requests.

    Args:
        path: the GGUF file; of a split model, its first part; or a tokenizer.json.

    Attributes:
        vocabulary: number of token ids.
        bos_id: the id that a prompt begins with where the model wants one, else None.

    Raises:
        ModelError: the file is not well-formed, or its tokenizer contradicts itself or takes too much.
        UnsupportedModel: a kind of tokenizer that is not known here.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._lock = threading.Lock()
        command = [sys.executable, "-P", "-m", "enginecmp.models.tokenizer_server", str(path)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a panic of the library prints pages
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
                bufsize=0,
            )
        except OSError as error:
            msg = f"{path}: expected to start a process for the tokenizer, got: {error.strerror or error}"
            raise ModelError(msg) from error
        self._end = weakref.finalize(self, _end, self._process)
        loaded = self._receive()
        self.vocabulary = loaded.vocabulary
        self.bos_id = loaded.bos_id

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; special tokens written out in it become their ids, none is added.

        Raises:
            ModelError: the tokenizer contradicts itself or takes too much.
        """
        return self._ask({"text": text}).token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of some ids; bytes that are no UTF-8 become U+FFFD. Errors as for `encode`."""
        return self._ask({"token_ids": list(token_ids)}).text

    def to_json(self) -> str:
        """Return the content of a tokenizer.json that reads text as this one does. Errors as for `encode`."""
        return self._ask({"whole": True}).text

    def _ask(self, request: dict[str, Any]) -> _Answer:
        with self._lock:
            if not self._end.alive:
                self._fail("its process has ended")
            assert self._process.stdin is not None
            # Everything is taken in before anything is answered, so that neither side waits for the other; a process
            # that gave up on the way has said why, or how it ended is told below.
            with contextlib.suppress(BrokenPipeError):
                content = memoryview(msgspec.json.encode(request) + b"\n")
                while content:
                    content = content[self._process.stdin.write(content) or 0 :]
            return self._receive()

    def _receive(self) -> _Answer:
        """Return the next answer, or raise what it tells."""
        assert self._process.stdout is not None
        pieces: list[bytes] = []
        n_bytes = 0
        end = time.monotonic() + DEADLINE_SECONDS
        while True:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self._process.kill()
                self._fail(f"it gave no answer within {DEADLINE_SECONDS:g} s")
            piece = os.read(self._process.stdout.fileno(), _READ_BYTES)
            if not piece:
                self._fail(self._how_it_ended())
            pieces.append(piece)
            n_bytes += len(piece)
            if n_bytes > ANSWER_BYTES:
                self._process.kill()
                self._fail(f"it gave more than {ANSWER_BYTES} bytes")
            if piece.endswith(b"\n"):
                break
        answer = msgspec.json.decode(b"".join(pieces), type=_Answer)
        if answer.kind == "MemoryError":
            self._fail(f"it needs more than {MEMORY_BYTES / 2**30:g} GiB")
        if answer.error is not None:
            raise (UnsupportedModel if answer.kind == "UnsupportedModel" else ModelError)(answer.error)
        return answer

    def _how_it_ended(self) -> str:
        """Return what became of a process that answers no more."""
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return f"it took more than {CPU_SECONDS} s of processor time"
        return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def _fail(self, how: str) -> NoReturn:
        """End the process and raise the error of a tokenizer that takes too much, or that broke its process."""
        self._end()
        path = plain(str(self._path), 4096)
        msg = f"{path}: expected a tokenizer that can be used within its limits, got: {how}; name another model"
        raise ModelError(msg)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with its stdin."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
