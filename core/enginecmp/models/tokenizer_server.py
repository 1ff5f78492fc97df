"""The child process that builds and runs a model's tokenizer: `python -m enginecmp.models.tokenizer_server PATH`.

A weights file decides what its tokenizer costs and whether the library's native code survives it, so that happens
here, within limits of memory and processor time. Requests come on stdin, answers go to stdout, each one line of JSON;
the first line out answers the loading. The process ends with its stdin.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

MEMORY_BYTES = 2**31
"""Most address space: a tokenizer of 260,000 tokens takes a third."""

CPU_SECONDS = 20
"""Most processor time of one request; loading the largest known vocabulary takes 4."""

Outcome = dict[str, Any]

_TOO_MUCH: Outcome = {"error": "", "kind": "MemoryError"}


class Request(msgspec.Struct):
    """A text to turn into ids, ids to turn into a text, or the wish for the whole as a tokenizer.json."""

    text: str | None = None
    whole: bool = False
    token_ids: list[int] = []


def main() -> None:
    """Serve the tokenizer of the file named on the command line."""
    # What it was told before is done: Ctrl-C is the host's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Whatever native code prints goes nowhere; only we hold the way back.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    tokenizer: Any = None

    def load() -> Outcome:
        nonlocal tokenizer
        from enginecmp.models.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(sys.argv[1])
        return {"vocabulary": tokenizer.vocabulary, "bos_id": tokenizer.bos_id}

    loaded = _tried(load)
    _send(answers, loaded)
    if "error" in loaded:
        return
    try:
        for line in sys.stdin.buffer:
            _send(answers, _tried(lambda line=line: _answer(tokenizer, line)))  # type: ignore[misc]
    except MemoryError:
        _send(answers, _TOO_MUCH)


def _answer(tokenizer: Any, line: bytes) -> Outcome:
    request = msgspec.json.decode(line, type=Request)
    if request.whole:
        return {"text": tokenizer.to_json()}
    if request.text is not None:
        return {"token_ids": tokenizer.encode(request.text)}
    return {"text": tokenizer.decode(request.token_ids)}


def _tried(work: Callable[[], Outcome]) -> Outcome:
    """Do one piece of work within its limits; errors become an answer."""
    from enginecmp.errors import ModelError

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = int(used) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    try:
        return work()
    except ModelError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except MemoryError:
        return _TOO_MUCH


def _send(answers: Any, outcome: Outcome) -> None:
    answers.write(msgspec.json.encode(outcome) + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
