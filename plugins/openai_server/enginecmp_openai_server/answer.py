"""A streamed answer, event by event: what tokens came, and whether the server's own count bears them out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from enginecmp import NO_ID, EngineError, RoundTripError

from .sse import Event, EventParser
from .words import decoded, is_error, words_in, words_of

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
"""Of tokens; whatever a server says, it fits into what is written."""

_LONGEST_SECONDS = 1e9


class Cached(msgspec.Struct, frozen=True):
    """How much of a prompt came from a cache."""

    cached_tokens: Count | None = None


class Reasoned(msgspec.Struct, frozen=True):
    """How much of an answer was reasoning."""

    reasoning_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """The server's own count."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: Cached | None = None
    completion_tokens_details: Reasoned | None = None


class Delta(msgspec.Struct, frozen=True):
    """What a chunk of a chat adds. Reasoning is generated text like any other."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """What a chunk adds to the one answer that is asked for."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None

    def has_content(self) -> bool:
        """Say whether a caller got something out of this chunk; the chunk that only names a role has nothing."""
        delta = self.delta
        said = delta is not None and (delta.content or delta.reasoning_content or delta.reasoning)
        return bool(self.text or said or self.token_ids)

    def is_reasoning(self) -> bool:
        """Say whether all that a caller got out of this chunk is reasoning, which is no part of the answer."""
        delta = self.delta
        reasoned = delta is not None and bool(delta.reasoning_content or delta.reasoning)
        return reasoned and not (self.text or (delta is not None and delta.content))

    def answered(self) -> str:
        """Return what this chunk adds to the answer, reasoning left out."""
        return (self.text or "") + ((self.delta.content or "") if self.delta is not None else "")


class Chunk(msgspec.Struct, frozen=True):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    timings: Any = None


_CHUNK = msgspec.json.Decoder(Chunk)
_DONE = b"[DONE]"


class Answer:
    """Collects one request's stream.

    Args:
        prompt_tokens: ids that were sent.
        output_tokens: tokens that were asked for.
        vocabulary: ids are below it.
        expects_usage: the server counts its streams.
        most_chunks: with content that may come.
        said: makes a server's words fit for a message.
        may_end: it may have fewer tokens than were asked for. Ids are then not told, since the number of tokens says
            when it is over.
        keep_text: what it says is kept.

    Attributes:
        tokens: one entry per chunk with content that is not handed out yet: its id, or `NO_ID`.
        chunks: chunks with content so far.
        ids: token ids that the server named.
        reasoning: chunks of reasoning so far.
        usage: the server's count, the last one it gave.
        finish_reason: its reason to stop.
        done: the stream said that it is over.
        proven: the number of tokens is certain.
    """

    def __init__(
        self,
        prompt_tokens: int,
        output_tokens: int,
        *,
        vocabulary: int,
        expects_usage: bool,
        most_chunks: int,
        said: Callable[[str | bytes], str],
        may_end: bool = False,
        keep_text: bool = False,
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._output_tokens = output_tokens
        self._expects_usage = expects_usage
        self._vocabulary = vocabulary
        self._most_chunks = most_chunks
        self._said = said
        self._may_end = may_end
        self._keep_text = keep_text
        self._pieces: list[str] = []
        self._parser = EventParser()
        self.tokens: deque[int] = deque()
        self.chunks = 0
        self.ids = 0
        self.reasoning = 0
        self.usage: Usage | None = None
        self.timings: Any = None
        self.finish_reason = ""
        self.done = False
        self.proven = False

    def feed(self, piece: bytes) -> None:
        """Take in what arrived.

        Raises:
            EngineError: an event that is no chunk of a completion, or that reports an error.
        """
        for event in self._parser.feed(piece):
            self._take(event)

    def finish(self) -> None:
        """Take in the end of the stream; a last event may lack its empty line.

        Raises:
            EngineError: as `feed`.
        """
        for event in self._parser.finish():
            self._take(event)

    def _take(self, event: Event) -> None:
        data = event.data.strip()
        if self.done or not data:
            return
        if event.kind == "error":
            raise self._error(words_in(data))
        if data == _DONE:
            self.done = True
            return
        try:
            chunk = _CHUNK.decode(data)
        except (msgspec.MsgspecError, RecursionError, ValueError) as error:
            if event.kind not in ("", "message"):
                return  # an event of another name is for somebody else
            msg = (
                f"openai_server: expected a chunk of a completion after {self.chunks} others, got "
                f"'{self._said(data)}' ({self._said(str(error))}); see the server's log"
            )
            raise EngineError(msg) from None
        if chunk.error is not None:
            raise self._error(words_of(chunk.error))
        if not chunk.choices and chunk.usage is None and is_error(found := decoded(data)):
            raise self._error(words_of(found))
        self.usage = chunk.usage or self.usage
        self.timings = chunk.timings or self.timings
        for choice in chunk.choices or ():
            self.finish_reason = choice.finish_reason or self.finish_reason
            ids = choice.token_ids or ()
            if ids and not 0 <= min(ids) <= max(ids) < self._vocabulary:
                msg = (
                    f"openai_server: expected token ids in [0, {self._vocabulary}), the server named another one after "
                    f"{self.chunks} chunks; does it serve this model?"
                )
                raise EngineError(msg)
            if choice.has_content():
                self.chunks += 1
                self.ids += len(ids)
                self.reasoning += choice.is_reasoning()
                self.tokens.append(ids[0] if ids and not self._may_end else NO_ID)
                if self._keep_text:
                    self._pieces.append(choice.answered())
        if max(self.chunks, self.ids) > self._most_chunks:
            # No chunk has less than one token: there is nothing to wait for.
            got = f"the stream went on after {max(self.chunks, self.ids)} of them"
            raise self._unlike(got)

    def _error(self, words: str) -> EngineError:
        return EngineError(
            f"openai_server: expected {self._output_tokens} tokens, got an error after {self.chunks} chunks: "
            f"{self._said(words)}; see the server's log"
        )

    def _unlike(self, got: str) -> EngineError:
        return unlike(self._output_tokens, got, self._said(self.finish_reason))

    def check(self) -> None:
        """Hold the finished stream to what was asked.

        As many chunks with content as tokens asked for are proof by themselves: no chunk has less than one token, and
        no more tokens were allowed.

        Raises:
            EngineError: it was cut, counted wrong or not at all, or is short.
            RoundTripError: the server read another number of prompt tokens.
        """
        wanted = self._output_tokens
        if not self.done and not self.chunks and self._parser.stray:
            raise self._error(words_in(self._parser.stray))
        if not self.done:
            msg = (
                f"openai_server: expected the stream to end with [DONE], it ended without after {self.chunks} chunks; "
                "was it cut by a proxy or a timeout? see the server's log"
            )
            raise EngineError(msg)
        usage = self.usage
        if usage is None or usage.completion_tokens is None or usage.prompt_tokens is None:
            self._check_uncounted()
            return
        check_prompt(usage, self._prompt_tokens)
        counted = usage.completion_tokens
        if counted < max(self.chunks, self.ids):
            msg = (
                f"openai_server: expected a count of at least {max(self.chunks, self.ids)} tokens, which the stream "
                f"had, the usage says {counted}; this server's counts cannot be relied on"
            )
            raise EngineError(msg)
        if counted != wanted and not (self._may_end and 0 < counted < wanted and self.finish_reason == "stop"):
            got = f"the server counted {counted}"
            raise self._unlike(got)
        self.proven = True

    def _check_uncounted(self) -> None:
        if self._expects_usage:
            msg = (
                "openai_server: expected the usage at the end of the stream, as this server sent it before, got none "
                f"after {self.chunks} chunks; see the server's log"
            )
            raise EngineError(msg)
        if self._may_end and self.finish_reason == "stop" and 0 < self.chunks <= self._output_tokens:
            return  # a token a chunk, to be proven
        if self.chunks > self._output_tokens or self.finish_reason != "length":
            got = f"the stream ended after {self.chunks} chunks"
            raise self._unlike(got)
        self.proven = self.chunks == self._output_tokens

    @property
    def text(self) -> str:
        """What it said so far, reasoning left out; empty where that is not kept."""
        return "".join(self._pieces)

    @property
    def counted(self) -> int:
        """Tokens that it has: as asked for; where it may end before, as the server counted, or as it has chunks."""
        usage = self.usage
        if not self._may_end:
            return self._output_tokens
        if usage is None or usage.completion_tokens is None:
            return self.chunks if self.finish_reason == "stop" else self._output_tokens
        return usage.completion_tokens

    def unproven(self) -> EngineError:
        """Return the error of an answer whose number of tokens nothing proves."""
        return EngineError(
            f"openai_server: expected a count of the {self._output_tokens} tokens in the stream's usage, got none, and "
            f"{self.chunks} chunks prove nothing; measure this server with one request at a time"
        )

    def metrics(self) -> dict[str, float]:
        """Return what the server said of its own work, names with units."""
        found = {"stream_chunk_count": float(self.chunks)}
        details = self.usage.prompt_tokens_details if self.usage else None
        if details is not None and details.cached_tokens is not None:
            found["cached_prompt_tokens"] = float(details.cached_tokens)
        reasoned = self.usage.completion_tokens_details if self.usage else None
        if reasoned is not None and reasoned.reasoning_tokens is not None:
            found["reasoning_tokens"] = float(reasoned.reasoning_tokens)
        for name, key in (("engine_prefill_seconds", "prompt_ms"), ("engine_decode_seconds", "predicted_ms")):
            spent = self.timings.get(key) if isinstance(self.timings, dict) else None
            if isinstance(spent, int | float) and 0 <= spent < _LONGEST_SECONDS:
                found[name] = spent / 1e3
        return found


def check_prompt(usage: Usage, prompt_tokens: int) -> None:
    """Hold a server's count of prompt tokens to the ids that were sent.

    Raises:
        RoundTripError: they differ.
    """
    if usage.prompt_tokens == prompt_tokens:
        return
    msg = (
        f"openai_server: expected a prompt of {prompt_tokens} tokens, the server counted {usage.prompt_tokens}; a "
        "begin token or a chat template was added, or another tokenizer is at work: check the served model, or use "
        "api=completions"
    )
    raise RoundTripError(msg)


def unlike(wanted: int, got: str, reason: str) -> EngineError:
    """Return the error of an answer with another number of tokens."""
    why = f", finish_reason '{reason}'" if reason else ""
    return EngineError(
        f"openai_server: expected {wanted} tokens, {got}{why}; a server must be made to ignore end-of-sequence "
        "(options server and body), have room in its context, and keep to max_tokens"
    )
