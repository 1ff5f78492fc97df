"""How a server is asked something: its connections, its answers, and its refusals in one line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from enginecmp import ContextOverflow, EngineError

from .http import Connection, Dropped, Headers, Misanswered
from .options import Settings
from .redaction import Redaction
from .words import Unreadable, decoded, is_error, words_in, words_of

AGENT = "enginecmp"
TURNED_AWAY = (429, 502, 503, 504)
"""Statuses of a server that has not begun: sent again where `retries` allows it."""

ANSWER_BYTES = 4 << 20
"""Longest answer to a question, unless the question asks for more; hundreds of served models take 1 MB."""

_NEXT_STEPS = {
    400: "check the server's limits and the options served_model, prompt and body",
    401: "name a variable that holds the API key with -o LABEL.api_key_env=NAME",
    403: "name a variable that holds the API key with -o LABEL.api_key_env=NAME",
    404: "check the address (it usually ends in /v1), served_model and api",
    422: "it refuses a field: check the options server, prompt and body",
    429: "it is busy: lower the concurrency, or allow -o LABEL.retries=N",
    503: "it is busy or still loading: wait, or allow -o LABEL.retries=N",
}


class Refused(EngineError):
    """A status other than 200, or an error in an answer of status 200.

    Attributes:
        status: which.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Reply(NamedTuple):
    """A whole answer, or as much as is read of a refusal."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Client:
    """One server's address and the connections to it.

    Args:
        settings: what the user said.

    Attributes:
        settings: the same.
        redaction: takes the API key out of what leaves the plugin.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.redaction = Redaction(settings.secret)
        self._idle: list[Connection] = []

    def headers(self, body: bytes) -> Headers:
        """Return the headers of a request."""
        found = [
            (b"host", self.settings.address.authority.encode()),
            (b"user-agent", AGENT.encode()),
            (b"accept", b"*/*"),
            # A compressed stream would be flushed when the compressor pleases.
            (b"accept-encoding", b"identity"),
            (b"content-length", str(len(body)).encode()),
        ]
        if body:
            found.append((b"content-type", b"application/json"))
        if self.settings.secret:
            found.append((b"authorization", b"Bearer " + self.settings.secret.encode()))
        return found

    def take_connection(self) -> tuple[Connection, bool]:
        """Return a connection that is ready, and whether it was opened for this.

        Raises:
            EngineError: nobody answers there.
        """
        while self._idle:
            connection = self._idle.pop()
            if not connection.over and connection.status:
                # Its last answer said that it is over before its last byte came.
                try:
                    connection.receive()
                except (Dropped, EngineError):
                    connection.close()
            if connection.reusable():
                return connection, False
            connection.close()
        return Connection(self.settings.address, self.redaction), True

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if connection.fileno() >= 0:
            self._idle.append(connection)

    def call(
        self,
        method: str,
        path: str,
        payload: Any = None,
        *,
        root: bool = False,
        seconds: float | None = None,
        most_bytes: int = ANSWER_BYTES,
    ) -> Reply:
        """Ask something and wait for the whole answer; never inside a measured window.

        Args:
            method: "GET" or "POST".
            path: below the API's base, or below the server's root.
            payload: sent as JSON.
            root: see `path`.
            seconds: longest time until the answer is whole; the option timeout_seconds where nothing is said.
            most_bytes: longest answer.

        Raises:
            EngineError: nobody is there.
            Misanswered: no answer came in time, too much of one, or what came is no HTTP.
        """
        address = self.settings.address
        target = (address.root if root else address.base) + path
        body = b"" if payload is None else msgspec.json.encode(payload)
        until = time.monotonic() + (self.settings.timeout_seconds if seconds is None else seconds)
        while True:
            connection, fresh = self.take_connection()
            try:
                connection.send(method, target, self.headers(body), body, most_bytes)
                return self._whole(connection, f"{method} {path}", until)
            except Dropped as dropped:
                connection.close()
                # A server may hang up on a silent connection at any time.
                if fresh:
                    msg = f"openai_server: expected an answer to {method} {path}, {dropped}; see the server's log"
                    raise Misanswered(msg) from None
            except BaseException:
                connection.close()
                raise

    def _whole(self, connection: Connection, what: str, until: float) -> Reply:
        pieces: list[bytes] = []
        while not connection.over:
            left = until - time.monotonic()
            if left <= 0 or not connection.wait(left):
                got = f"{connection.received_bytes} bytes of it"
                raise self.late("the whole answer to " + what, got)
            pieces += connection.receive()
        reply = Reply(connection.status, connection.headers, b"".join(pieces))
        if connection.cut and reply.status == 200:
            msg = (
                f"openai_server: expected less than {connection.received_bytes >> 20} MiB from {what}, got more; is "
                "this an OpenAI-compatible server?"
            )
            raise Misanswered(msg)
        if reply.status == 200:
            self.require_uncompressed(reply.headers, what)
        self.give_back(connection)
        return reply

    def ask(
        self, method: str, path: str, payload: Any = None, *, root: bool = False, most_bytes: int = ANSWER_BYTES
    ) -> Any:
        """Return the decoded answer of a call that must succeed.

        Raises:
            EngineError: it did not, or the answer is no JSON.
        """
        return self.decoded(self.call(method, path, payload, root=root, most_bytes=most_bytes), f"{method} {path}")

    def decoded(self, reply: Reply, what: str) -> Any:
        """Return the decoded answer of a call that must have succeeded.

        Raises:
            EngineError: it did not, or the answer is no JSON.
        """
        if reply.status != 200:
            raise self.refusal(reply, what)
        try:
            found = decoded(reply.body)
        except Unreadable:
            said = self.redaction.said(reply.body)
            msg = f"openai_server: expected JSON from {what}, got '{said}'; is this an OpenAI-compatible server?"
            raise EngineError(msg) from None
        if is_error(found):
            raise self.excuse(words_of(found), what)
        return found

    def refusal(self, reply: Reply, what: str) -> EngineError:
        """Return the error of a status other than 200, in the server's own words."""
        encoding = self._encoding(reply.headers)
        said = f"words compressed as {encoding}" if encoding else self.redaction.said(words_in(reply.body))
        later = self.redaction.said(reply.headers.get(b"retry-after", b""), 40)
        after = f" (Retry-After: {later})" if later else ""
        step = _NEXT_STEPS.get(reply.status, "see the server's log")
        msg = f"openai_server: expected 200 from {what}, got {reply.status}{after}: {said or 'no words'}; {step}"
        overflow = reply.status in (400, 413, 422) and "context" in said.lower() and "length" in said.lower()
        return ContextOverflow(msg) if overflow else Refused(msg, reply.status)

    def excuse(self, words: str, what: str) -> EngineError:
        """Return the error of an error object in an answer of status 200."""
        said = self.redaction.said(words)
        return Refused(f"openai_server: expected an answer to {what}, got an error: {said}; see the server's log", 200)

    def require_uncompressed(self, headers: Mapping[bytes, bytes], what: str) -> None:
        """Refuse a compressed answer: nobody asked for it, and a stream would come when the compressor pleases.

        Raises:
            EngineError: it is one.
        """
        if encoding := self._encoding(headers):
            msg = (
                f"openai_server: expected an uncompressed answer to {what} (accept-encoding: identity), got "
                f"content-encoding {encoding}; turn compression off in the server or its proxy"
            )
            raise EngineError(msg)

    def _encoding(self, headers: Mapping[bytes, bytes]) -> str:
        """Return how an answer is compressed; empty where it is not."""
        encoding = self.redaction.said(headers.get(b"content-encoding", b"").lower(), 40)
        return "" if encoding == "identity" else encoding

    def late(self, what: str, got: str) -> Misanswered:
        """Return the error of a server that takes too long."""
        return Misanswered(
            f"openai_server: expected {what} from {self.settings.address} within {self.settings.timeout_seconds:g} s, "
            f"got {got}; see the server's log, or raise timeout_seconds"
        )

    def close(self) -> None:
        """Hang up on every idle connection."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()
