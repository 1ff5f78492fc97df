"""One streamed request under way: sent at once, read as it arrives, sent again only where allowed, and counted."""

from __future__ import annotations

import contextlib
import selectors
import time

from enginecmp import EngineError

from .answer import Answer
from .http import Connection, Dropped
from .session import TURNED_AWAY, Reply, Session

_RETRY_SECONDS = 1.0
"""Between two attempts where the server does not say how long to wait."""


class Flight:
    """A request and its answer.

    Args:
        session: the server.
        body: the request, JSON.
        prompt_tokens: ids in its prompt.
        output_tokens: tokens asked for.
        name: its id in a batch.
        selector: watches its connection where several fly at once.
        verify: hold the finished answer to what was asked.

    Attributes:
        answer: what came so far.
        over: the answer is complete and was not found wrong.
        handed: tokens handed out, for the caller's use.
        resume_at: when to send again, on time.monotonic's clock; 0 while an attempt is under way.
    """

    def __init__(
        self,
        session: Session,
        body: bytes,
        prompt_tokens: int,
        output_tokens: int,
        *,
        name: str = "",
        selector: selectors.BaseSelector | None = None,
        verify: bool = True,
    ) -> None:
        self._session = session
        self._body = body
        self._selector = selector
        self._verify = verify
        self._connection: Connection | None = None
        self._fresh = False
        self._refused: list[bytes] = []
        self._heard = 0.0
        self._sent_ns = 0
        self._headers_ns = 0
        self._retries = 0
        self._reconnects = 0
        self.name = name
        self.output_tokens = output_tokens
        self.answer = Answer(prompt_tokens, output_tokens, expects_usage=session.counts_streams, clean=session.clean)
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
            EngineError: the answer is none, is cut, or is refused.
        """
        connection = self._connection
        if connection is None:
            if time.monotonic() >= self.resume_at:
                self._send()
            return
        try:
            self._take_in(connection)
        except Dropped as dropped:
            self._dropped(dropped)
        except BaseException:
            self.abandon()
            raise

    def _take_in(self, connection: Connection) -> None:
        pieces = connection.receive()
        if not connection.status:
            return
        self._heard = time.monotonic()
        if not self._headers_ns:
            self._headers_ns = time.perf_counter_ns()
        if connection.status != 200:
            self._refused += pieces
            if connection.over:
                self._turned_away(connection)
            return
        self._require_events(connection)
        for piece in pieces:
            self.answer.feed(piece)
        if connection.over:
            self.answer.finish()
        if connection.over or self.answer.done:
            self._release(keep=True)
            if self._verify:
                self.answer.check()
            self.over = True

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until something arrives, then take it in.

        Raises:
            EngineError: as `pump`, or the server has been silent for too long.
        """
        connection = self._connection
        if connection is None:
            time.sleep(max(0.0, self.resume_at - time.monotonic()))
        else:
            left = self._heard + self._session.settings.timeout_seconds - time.monotonic()
            if not connection.wait(left if seconds is None else min(left, seconds)):
                self.require_sound()
                return
        self.pump()

    def require_sound(self) -> None:
        """Raise if the server has said nothing for too long.

        Raises:
            EngineError: it has.
        """
        if self._connection and time.monotonic() - self._heard >= self._session.settings.timeout_seconds:
            self.abandon()
            raise self._session.silence()

    def abandon(self) -> None:
        """Hang up, so that the server notices that nobody listens."""
        self._release(keep=False)

    def metrics(self) -> dict[str, float]:
        """Return what there is to say of the way to the answer."""
        found = self.counts()
        if self._headers_ns:
            found["headers_seconds"] = (self._headers_ns - self._sent_ns) / 1e9
        return found | self.answer.metrics()

    def counts(self) -> dict[str, float]:
        """Return how often it was sent again."""
        return {"retry_count": float(self._retries), "reconnect_count": float(self._reconnects)}

    def _send(self) -> None:
        """Send the request on an idle connection, or on a new one."""
        session = self._session
        self.resume_at = 0.0
        while True:
            try:
                connection, self._fresh = session.take_connection()
            except EngineError:
                if self._retry_later(_RETRY_SECONDS):
                    return
                raise
            if not self._sent_ns:
                self._sent_ns = time.perf_counter_ns()
            try:
                target = session.settings.address.base + session.path
                connection.send("POST", target, session.headers(self._body), self._body)
            except Dropped as dropped:
                connection.close()
                if self._fresh:
                    raise self._unanswered(dropped) from None
                self._reconnects += 1
                continue
            break
        self._connection = connection
        self._heard = time.monotonic()
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
        reply = Reply(connection.status, connection.headers, b"".join(self._refused))
        self._refused = []
        self._release(keep=True)
        if reply.status in TURNED_AWAY and self._retry_later(_retry_after(reply)):
            return
        raise self._session.refusal(reply, f"POST {self._session.path}")

    def _retry_later(self, seconds: float) -> bool:
        if self._retries >= self._session.settings.retries:
            return False
        self._retries += 1
        self._headers_ns = 0
        self.resume_at = time.monotonic() + min(seconds, self._session.settings.timeout_seconds)
        return True

    def _unanswered(self, dropped: Dropped) -> EngineError:
        return EngineError(
            f"openai_server: expected an answer to POST {self._session.path}, {dropped} before the first byte; see the "
            "server's log"
        )

    def _require_events(self, connection: Connection) -> None:
        kind = connection.headers.get(b"content-type", b"")
        if kind.startswith(b"text/event-stream"):
            return
        came = self._session.clean(kind.decode("latin-1"))[:60] or "no content type"
        msg = f"openai_server: expected a stream of events (text/event-stream), got {came}; does this server stream?"
        raise EngineError(msg)

    def _release(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._selector is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(connection)
        if keep:
            self._session.give_back(connection)
        else:
            connection.close()


def _retry_after(reply: Reply) -> float:
    """Return the seconds that the server asks to wait; a date, or nothing, is answered with a second."""
    text = reply.headers.get(b"retry-after", b"").decode("ascii", "replace").strip()
    return float(text) if text.isdecimal() else _RETRY_SECONDS
