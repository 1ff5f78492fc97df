"""Prompts for servers that take text only: the text that the server reads as exactly the given ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from enginecmp import GREEDY, Decoding, EngineError, RoundTripError, load_tokenizer

from .answer import Usage, check_prompt
from .server import Server
from .words import words_of

_EVICTORS = ("0", "a")


class Reader:
    """Turns ids into text with the model file's tokenizer, and proves that the server turns it back.

    Args:
        server: reads the text.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tokenizer = load_tokenizer(server.model.path)
        self._texts: dict[tuple[int, ...], str] = {}
        self._adds_bos = False

    def learn(self) -> None:
        """Find out whether the server puts a begin token in front of a text; by its count, where nothing else tells.

        Raises:
            RoundTripError: its count fits neither way.
        """
        if self._server.kind.tokenize is not None:
            return
        text = "the end of the river"
        tokens = len(self._tokenizer.encode(text))
        usage = usage_of(self._server, text, 1)
        self._adds_bos = self._tokenizer.bos_id is not None and usage.prompt_tokens == tokens + 1
        check_prompt(usage, tokens + self._adds_bos)

    def text_of(self, ids: tuple[int, ...]) -> str:
        """Return the text of a prompt, proven once.

        Raises:
            RoundTripError: the server reads no text of these ids as these ids.
        """
        text = self._texts.get(ids)
        if text is None:
            text = self._texts[ids] = self._proven(ids)
        return text

    def _proven(self, ids: tuple[int, ...]) -> str:
        wanted = list(ids)
        bos = self._tokenizer.bos_id
        # Without the begin token first: most servers add it to a text.
        bodies = [wanted[1:], wanted] if bos is not None and wanted[0] == bos else [wanted]
        read: list[int] = []
        for body in bodies:
            text = self._tokenizer.decode(body)
            if not text:
                continue
            read = self._reading(text)
            if read == wanted:
                return text
        raise RoundTripError(_difference(wanted, read))

    def _reading(self, text: str) -> list[int]:
        """Return the ids as which the server reads a text."""
        server = self._server
        tokenize = server.kind.tokenize
        if tokenize is None:
            bos = [self._tokenizer.bos_id] if self._adds_bos and self._tokenizer.bos_id is not None else []
            return bos + self._tokenizer.encode(text)
        answer: Any = server.client.ask("POST", tokenize.path, tokenize.fields(text, server.served_model), root=True)
        try:
            return [int(token) for token in tokenize.ids(answer)]
        except (KeyError, TypeError, ValueError, OverflowError):
            said = server.client.redaction.said(words_of(answer))
            msg = f"openai_server: expected token ids from {tokenize.path}, got '{said}'; is it {server.kind.title}?"
            raise EngineError(msg) from None


def usage_of(server: Server, prompt: str | tuple[int, ...], output_tokens: int, decoding: Decoding = GREEDY) -> Usage:
    """Return the server's count of an unstreamed request.

    Raises:
        EngineError: it gives none.
    """
    import msgspec

    answer = server.client.ask(
        "POST", server.path, server.request(prompt, output_tokens, stream=False, decoding=decoding)
    )
    try:
        usage = msgspec.convert(answer["usage"], Usage)
    except (KeyError, TypeError, msgspec.ValidationError):
        usage = Usage()
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        msg = (
            f"openai_server: expected the numbers of tokens in the usage of POST {server.path}, got none; without "
            "them nothing can be compared: use a server that counts"
        )
        raise EngineError(msg)
    return usage


def settle(server: Server, before: str | Sequence[int] = "") -> None:
    """Run one token of a prompt that shares nothing with what comes: the server is then free, and its cache evicted.

    Args:
        server: the server.
        before: the prompt that comes next.
    """
    if server.takes_ids:
        token = 1 + (bool(before) and before[0] == 1)
        usage_of(server, (int(token),), 1)
    else:
        usage_of(server, next(text for text in _EVICTORS if not str(before).startswith(text)), 1)


def _difference(wanted: Sequence[int], read: Sequence[int]) -> str:
    pairs = zip(wanted, read, strict=False)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(wanted), len(read)))
    return (
        f"openai_server: the server takes text only, and this prompt of {len(wanted)} tokens reads back as "
        f"{len(read)}: first difference at position {at}, expected {_id_at(wanted, at)}, got {_id_at(read, at)}; use "
        "another prompt"
    )


def _id_at(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "the end"
