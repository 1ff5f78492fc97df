"""One server, as a session knows it: how to ask it something, and what it is able to do."""

from __future__ import annotations

import selectors
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import psutil

from enginecmp import ContextOverflow, EngineError, ModelInfo

from .answer import SHOWN
from .http import Connection, Dropped, Headers
from .options import Settings
from .servers import KINDS, Kind

if TYPE_CHECKING:
    from .flight import Flight
    from .prompts import Reader

AGENT = "enginecmp"
TURNED_AWAY = (429, 502, 503, 504)
"""Statuses of a server that has not begun: sent again where `retries` allows it."""

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
    """A status other than 200.

    Attributes:
        status: which.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Reply(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


@dataclass(slots=True)
class Session:
    """A server that serves one model.

    Attributes:
        settings: what the user said.
        model: the file of this run.
        context_tokens: prompt plus output tokens that a request may have.
        max_sequences: most requests in flight.
        served_model: the model's name at the server.
        kind: what needs to be told to it.
        takes_ids: prompts go as token ids; else as text.
        counts_streams: streams end with a usage.
        stream_options: the server accepts the field that asks for it.
        process: the server, where it was started here.
        family: the server's processes, where they run on this machine.
        cpu_seconds: what these had used when the last request, or batch of them, was prepared.
        reader: turns ids into text and proves it; None where ids are taken.
        control_ids: end tokens, kept out by a logit bias where nothing else does.
        idle: open connections.
        active: the request of cmp_prefill.
        flights: requests of cmp_submit, by id.
        ready: those of them that have tokens to hand out or are over.
        selector: watches the connections of `flights`.
        last: ids and output tokens of the last request.
        prepared: ids, output tokens and body of the request that cmp_prepare made ready.
        metrics: of the request that ended last.
        counted: prompts and output tokens whose number a request of its own has proven.
    """

    settings: Settings
    model: ModelInfo
    context_tokens: int
    max_sequences: int
    served_model: str = ""
    kind: Kind = KINDS["openai"]
    takes_ids: bool = False
    counts_streams: bool = False
    stream_options: bool = True
    process: subprocess.Popen[bytes] | None = None
    family: Sequence[psutil.Process] = ()
    cpu_seconds: float = 0.0
    reader: Reader | None = None
    control_ids: tuple[int, ...] = ()
    idle: list[Connection] = field(default_factory=list)
    active: Flight | None = None
    flights: dict[str, Flight] = field(default_factory=dict)
    ready: dict[str, Flight] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    last: tuple[tuple[int, ...], int] | None = None
    prepared: tuple[tuple[int, ...], int, bytes] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    counted: set[tuple[tuple[int, ...], int]] = field(default_factory=set)

    def clean(self, text: str) -> str:
        """Return a server's words in one line, without the API key that some servers repeat."""
        if self.settings.secret:
            text = text.replace(self.settings.secret, "***")
        return " ".join(text.split())

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
        while self.idle:
            connection = self.idle.pop()
            if not connection.over and connection.status:
                # Its last answer said that it is over before its last byte came.
                try:
                    connection.receive()
                except (Dropped, EngineError):
                    connection.close()
            if connection.reusable():
                return connection, False
            connection.close()
        return Connection(self.settings.address), True

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        if connection.fileno() >= 0:
            self.idle.append(connection)

    def call(self, method: str, path: str, payload: Any = None, *, root: bool = False) -> Reply:
        """Ask something and wait for the whole answer; never inside a measured window.

        Args:
            method: "GET" or "POST".
            path: below the API's base, or below the server's root.
            payload: sent as JSON.
            root: see `path`.

        Raises:
            EngineError: nobody answers, in time or at all, or what came is no HTTP.
        """
        address = self.settings.address
        target = (address.root if root else address.base) + path
        body = b"" if payload is None else msgspec.json.encode(payload)
        while True:
            connection, fresh = self.take_connection()
            try:
                return self._exchange(connection, method, target, body)
            except Dropped as dropped:
                connection.close()
                # A server may hang up on a silent connection at any time.
                if fresh:
                    msg = f"openai_server: expected an answer to {method} {target}, {dropped}; see the server's log"
                    raise EngineError(msg) from None
            except BaseException:
                connection.close()
                raise

    def _exchange(self, connection: Connection, method: str, target: str, body: bytes) -> Reply:
        connection.send(method, target, self.headers(body), body)
        pieces: list[bytes] = []
        heard = time.monotonic()
        while not connection.over:
            silent = time.monotonic() - heard
            if not connection.wait(self.settings.timeout_seconds - silent):
                raise self.silence()
            pieces += connection.receive()
            heard = time.monotonic()
        self.give_back(connection)
        return Reply(connection.status, connection.headers, b"".join(pieces))

    def ask(self, method: str, path: str, payload: Any = None, *, root: bool = False) -> Any:
        """Return the decoded answer of a call that must succeed.

        Raises:
            EngineError: it did not, or the answer is no JSON.
        """
        reply = self.call(method, path, payload, root=root)
        if reply.status != 200:
            raise self.refusal(reply, f"{method} {path}")
        try:
            return msgspec.json.decode(reply.body)
        except msgspec.MsgspecError:
            said = self.clean(reply.body[:SHOWN].decode("utf-8", "replace"))
            msg = (
                f"openai_server: expected JSON from {method} {path}, got '{said}'; is this an OpenAI-compatible server?"
            )
            raise EngineError(msg) from None

    def refusal(self, reply: Reply, what: str) -> EngineError:
        """Return the error of a status other than 200, in the server's own words."""
        said = self.clean(_words(reply.body))
        later = reply.headers.get(b"retry-after", b"").decode("ascii", "replace")
        after = f" (Retry-After: {self.clean(later)[:40]})" if later else ""
        step = _NEXT_STEPS.get(reply.status, "see the server's log")
        msg = (
            f"openai_server: expected 200 from {what}, got {reply.status}{after}: {said[:SHOWN] or 'no words'}; {step}"
        )
        overflow = reply.status in (400, 413, 422) and "context" in said.lower() and "length" in said.lower()
        return ContextOverflow(msg) if overflow else Refused(msg, reply.status)

    def silence(self) -> EngineError:
        """Return the error of a server that says nothing."""
        return EngineError(
            f"openai_server: expected something from {self.settings.address} within {self.settings.timeout_seconds:g} "
            "s, got nothing; see the server's log, or raise timeout_seconds"
        )

    @property
    def path(self) -> str:
        """The endpoint that generates."""
        return "/chat/completions" if self.settings.api == "chat" else "/completions"

    def request(
        self, prompt: str | tuple[int, ...], output_tokens: int, *, stream: bool, salt: str = ""
    ) -> dict[str, Any]:
        """Return the body of a greedy request for so many tokens.

        Args:
            prompt: text or ids.
            output_tokens: to generate, end-of-sequence ignored as far as the server can.
            stream: as events.
            salt: keeps prefix caches from finding anything, where the server knows the field.
        """
        kind = self.kind
        fields: dict[str, Any] = {
            "model": self.served_model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": stream,
            **kind.fields,
        }
        if self.settings.api == "chat":
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        if kind.least_field:
            fields[kind.least_field] = output_tokens
        if kind.salt_field and salt:
            fields[kind.salt_field] = salt
        if kind.control_bias and self.control_ids:
            fields |= {"logit_bias": {str(token): -100.0 for token in self.control_ids}, "logit_bias_type": "input_ids"}
        if stream and self.stream_options:
            fields["stream_options"] = {"include_usage": True}
        return fields | dict(self.settings.body)


def _words(body: bytes) -> str:
    """Return the message inside an error's body, or the body."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return body[: 4 * SHOWN].decode("utf-8", "replace")
    found: Any = decoded
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return found if isinstance(found, str) else str(found)
