"""One streamed request under way: sent at once, read as it arrives, sent again only where allowed, and counted."""

from __future__ import annotations

import contextlib
import selectors
import time

from enginecmp import EngineError

from .answer import Answer
from .client import ANSWER_BYTES, TURNED_AWAY, Reply
from .http import REFUSAL_BYTES, Connection, Dropped
from .server import Server
from .words import Unreadable, decoded, is_error, words_of

_RETRY_SECONDS = 1.0
"""Between two attempts where the server does not say how long to wait."""
_SPARE_CHUNKS = 64
_TOKEN_BYTES = 1 << 16
_PROMPT_TOKEN_BYTES = 64
"""Most that a stream may take for each token, and for each token of the prompt that it repeats."""


class Flight:
    """A request and its answer.

    Args:
        server: where to.
        body: the request, JSON.
        prompt_tokens: ids in its prompt.
        output_tokens: tokens asked for.
        name: its id in a batch.
        selector: watches its connection where several fly at once.
        verify: hold the finished answer to what was asked.
        may_end: the answer may have fewer tokens.
        keep_text: keep what it says.

    Attributes:
        answer: what came so far.
        over: the answer is complete and was not found wrong.
        handed: tokens handed out, for the caller's use.
        resume_at: when to send again, on time.monotonic's clock; 0 while an attempt is under way.
    """

    def __init__(
        self,
        server: Server,
        body: bytes,
        prompt_tokens: int,
        output_tokens: int,
        *,
        name: str = "",
        selector: selectors.BaseSelector | None = None,
        verify: bool = True,
        may_end: bool = False,
        keep_text: bool = False,
    ) -> None:
        self._server = server
        self._body = body
        self._selector = selector
        self._verify = verify
        self._connection: Connection | None = None
        self._fresh = False
        self._words: list[bytes] = []
        self._progress = 0.0
        self._sent_ns = 0
        self._headers_ns = 0
        self._streams = False
        self._visible_ns = 0
        self._retries = 0
        self._reconnects = 0
        self.name = name
        self.output_tokens = output_tokens
        self.answer = Answer(
            prompt_tokens,
            output_tokens,
            vocabulary=server.model.vocabulary,
            expects_usage=server.counts_streams,
            most_chunks=output_tokens if verify else output_tokens + _SPARE_CHUNKS,
            said=server.client.redaction.said,
            may_end=may_end,
            keep_text=keep_text,
        )
        self._most_bytes = ANSWER_BYTES + _TOKEN_BYTES * output_tokens + _PROMPT_TOKEN_BYTES * prompt_tokens
        self.over = False
        self.handed = 0
        self.resume_at = 0.0
        self._send()

    @property
    def started(self) -> bool:
        """Something came, or the answer is over."""
        return bool(self.answer.tokens) or self.over

    def pump(self) -> None:
        """Take in what has arrived; returns at once.

        Raises:
            EngineError: the answer is none, is cut, is refused, or does not go on.
        """
        connection = self._connection
        if connection is None:
            if time.monotonic() >= self.resume_at:
                self._send()
            return
        try:
            self._take_in(connection)
            # Bytes alone are no progress: a server that sends one now and then would never end.
            self.require_progress()
        except Dropped as dropped:
            self._dropped(dropped)
        except BaseException:
            self.abandon()
            raise

    def _take_in(self, connection: Connection) -> None:
        pieces = connection.receive()
        if not connection.status:
            return
        first = not self._headers_ns
        if first:
            self._headers_ns = time.perf_counter_ns()
        if connection.status != 200:
            self._words += pieces
            if connection.over:
                self._turned_away(connection)
            return
        if first:
            self._server.client.require_uncompressed(connection.headers, self._what)
            kind = connection.headers.get(b"content-type", b"").lower()
            self._streams = kind.startswith(b"text/event-stream")
        if not self._streams:
            self._words += pieces
            if connection.over or connection.received_bytes > REFUSAL_BYTES:
                raise self._no_events(connection)
            return
        chunks = self.answer.chunks
        for piece in pieces:
            self.answer.feed(piece)
        if connection.cut:
            raise self._too_long()
        if connection.over:
            self.answer.finish()
        if self.answer.chunks > chunks:
            self._progress = time.monotonic()
            if not self._visible_ns and self.answer.chunks > self.answer.reasoning:
                self._visible_ns = time.perf_counter_ns()
        if connection.over or self.answer.done:
            self._release(keep=True)
            if self._verify:
                self.answer.check()
            self.over = True

    def wait(self) -> None:
        """Sleep until something arrives, then take it in.

        Raises:
            EngineError: as `pump`.
        """
        connection = self._connection
        if connection is None:
            time.sleep(max(0.0, self.resume_at - time.monotonic()))
        else:
            connection.wait(self._progress + self._server.settings.timeout_seconds - time.monotonic())
        self.pump()

    def require_progress(self) -> None:
        """Raise if no token has come for too long.

        Raises:
            EngineError: it has.
        """
        if self._connection and time.monotonic() - self._progress >= self._server.settings.timeout_seconds:
            received = self._connection.received_bytes
            self.abandon()
            raise self._server.client.late(
                "the next token" if self.answer.chunks else "the first token",
                f"{received} bytes without one" if received else "nothing",
            )

    def abandon(self) -> None:
        """Hang up, so that the server notices that nobody listens."""
        self._release(keep=False)

    def metrics(self) -> dict[str, float]:
        """Return what there is to say of the way to the answer."""
        found = self.counts()
        if self._headers_ns:
            found["headers_seconds"] = (self._headers_ns - self._sent_ns) / 1e9
        if self._visible_ns and self.answer.reasoning:
            found["first_visible_token_seconds"] = (self._visible_ns - self._sent_ns) / 1e9
        return found | self.answer.metrics()

    def counts(self) -> dict[str, float]:
        """Return how often it was sent again."""
        return {"retry_count": float(self._retries), "reconnect_count": float(self._reconnects)}

    def _send(self) -> None:
        """Send the request on an idle connection, or on a new one."""
        server, client = self._server, self._server.client
        self.resume_at = 0.0
        while True:
            try:
                connection, self._fresh = client.take_connection()
            except EngineError:
                if self._retry_later(_RETRY_SECONDS):
                    return
                raise
            if not self._sent_ns:
                self._sent_ns = time.perf_counter_ns()
            try:
                target = server.settings.address.base + server.path
                connection.send("POST", target, client.headers(self._body), self._body, self._most_bytes)
            except Dropped as dropped:
                connection.close()
                if self._fresh:
                    raise self._unanswered(dropped) from None
                self._reconnects += 1
                continue
            break
        self._connection = connection
        self._progress = time.monotonic()
        if self._selector is not None:
            self._selector.register(connection, selectors.EVENT_READ, self)

    def _dropped(self, dropped: Dropped) -> None:
        """The server hung up before its first byte: its right on a kept connection, and the request goes again."""
        fresh = self._fresh
        self._release(keep=False)
        if not fresh:
            self._reconnects += 1
            self._send()
        elif not self._retry_later(_RETRY_SECONDS):
            raise self._unanswered(dropped)

    def _turned_away(self, connection: Connection) -> None:
        reply = Reply(connection.status, connection.headers, b"".join(self._words))
        self._words = []
        self._release(keep=True)
        if reply.status in TURNED_AWAY and self._retry_later(_retry_after(reply)):
            return
        raise self._server.client.refusal(reply, self._what)

    def _retry_later(self, seconds: float) -> bool:
        if self._retries >= self._server.settings.retries:
            return False
        self._retries += 1
        self._headers_ns = 0
        self._streams = False
        self._visible_ns = 0
        self.resume_at = time.monotonic() + min(seconds, self._server.settings.timeout_seconds)
        return True

    def _unanswered(self, dropped: Dropped) -> EngineError:
        return EngineError(
            f"openai_server: expected an answer to {self._what}, {dropped} before the first byte; see the server's log"
        )

    @property
    def _what(self) -> str:
        return f"POST {self._server.path}"

    def _no_events(self, connection: Connection) -> EngineError:
        """Return the error of a good answer that is no stream: the server's own words, where it says what is wrong."""
        client = self._server.client
        try:
            found = decoded(b"".join(self._words))
        except Unreadable:
            found = None
        if is_error(found):
            return client.excuse(words_of(found), self._what)
        got = client.redaction.said(connection.headers.get(b"content-type", b""), 60) or "no content type"
        return EngineError(
            f"openai_server: expected a stream of events (text/event-stream), got {got}; does this server stream?"
        )

    def _too_long(self) -> EngineError:
        return EngineError(
            f"openai_server: expected a stream of {self.output_tokens} tokens, got more than {self._most_bytes >> 20} "
            f"MiB with {self.answer.chunks} chunks of content; is this a stream of completions?"
        )

    def _release(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._selector is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(connection)
        if keep:
            self._server.client.give_back(connection)
        else:
            connection.close()


def _retry_after(reply: Reply) -> float:
    """Return the seconds that the server asks to wait; a date, or nothing, is answered with a second."""
    text = reply.headers.get(b"retry-after", b"").decode("ascii", "replace").strip()
    return float(text) if text.isdecimal() else _RETRY_SECONDS
