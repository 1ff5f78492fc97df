"""HTTP/1.1 over one non-blocking socket; h11 knows the protocol, this module moves its bytes.

One thread reads every stream, for one request as for many. A thread for each (http.client) saw tokens no sooner where
the cores were free, and then each of them would have to hand its token to the thread that reads the clock.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Sequence

import h11

from enginecmp import EngineError

from .address import Address
from .redaction import Redaction

CONNECT_SECONDS = 10.0
_PIECE_BYTES = 1 << 16
_LONGEST_HEAD_BYTES = 1 << 16
REFUSAL_BYTES = 1 << 16
"""So much is read of an answer that refuses: its first words are shown."""
_QUIET = (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError, InterruptedError)

Headers = Sequence[tuple[bytes, bytes]]


class Dropped(Exception):
    """The other end went away before the first byte of its answer; internal, always caught."""

    def __init__(self, how: str = "it closed the connection") -> None:
        super().__init__(how)


class Misanswered(EngineError):
    """Somebody answers, but not with one whole HTTP/1.1 answer of a sensible size in time."""


class Connection:
    """One connection, kept for as many requests as the server allows.

    Args:
        address: where to.
        redaction: takes the API key out of what a message repeats.

    Attributes:
        status: of the answer, 0 before it.
        headers: of the answer, names in lower case.
        over: the answer is complete, or more of it than was allowed has come.
        cut: more of it came than was allowed; the connection is closed.
        received_bytes: of the body, so far.
        served: requests answered on this connection.
    """

    def __init__(self, address: Address, redaction: Redaction) -> None:
        self._address = address
        self._redaction = redaction
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LONGEST_HEAD_BYTES)
        self._socket = _open(address, redaction)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.over = False
        self.cut = False
        self.received_bytes = 0
        self.served = 0
        self._most_bytes = 0

    def fileno(self) -> int:
        """Return the descriptor, for selectors; -1 when closed."""
        return self._socket.fileno()

    def reusable(self) -> bool:
        """Make it ready for the next request; False where the server has closed it or will not keep it."""
        if self._socket.fileno() < 0:
            return False
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        # Anything to read from a silent connection is its end.
        return self._h11.our_state is h11.IDLE and not self._poll.poll(0)

    def send(self, method: str, target: str, headers: Headers, body: bytes, most_bytes: int) -> None:
        """Send one request.

        Args:
            method: "GET" or "POST".
            target: path.
            headers: of the request.
            body: of the request.
            most_bytes: longest body of an answer that does not refuse.

        Raises:
            Dropped: the other end is gone.
        """
        self.status, self.headers, self.over, self.received_bytes = 0, {}, False, 0
        self._most_bytes = most_bytes
        request = h11.Request(method=method, target=target, headers=list(headers))
        pieces = [self._h11.send(request), self._h11.send(h11.Data(data=body)), self._h11.send(h11.EndOfMessage())]
        self._write(b"".join(piece for piece in pieces if piece))

    def wait(self, seconds: float) -> bool:
        """Sleep until there is something to read; False when there is nothing after that time."""
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def receive(self) -> list[bytes]:
        """Return the pieces of the body that are there; an empty list where there is nothing yet.

        Raises:
            Dropped: the other end is gone and has not answered a byte.
            Misanswered: it went away in the middle of its answer, or what came is no HTTP/1.1.
        """
        pieces: list[bytes] = []
        try:
            got = self._socket.recv(_PIECE_BYTES)
            self._feed(got, pieces)
            # TLS may hold more than the kernel tells.
            while got and not self.over and isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
                got = self._socket.recv(_PIECE_BYTES)
                self._feed(got, pieces)
        except _QUIET:
            pass
        except ssl.SSLError as error:
            raise self._broken(str(error.reason), "TLS failed") from None
        except OSError as error:
            if not self.status:
                raise Dropped(_reason(error)) from None
            if self.status != 200:
                self.over = True
                self.close()
                return pieces
            raise self._broken(_reason(error), "the connection broke") from None
        return pieces

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _feed(self, got: bytes, pieces: list[bytes]) -> None:
        if not got and self._h11.trailing_data[0] == b"" and not self.status:
            raise Dropped
        try:
            self._h11.receive_data(got)
            while True:
                event = self._h11.next_event()
                if isinstance(event, h11.Data):
                    self.received_bytes += len(event.data)
                    pieces.append(bytes(event.data))
                    if self.received_bytes > self._most_bytes:
                        self.over = self.cut = True
                        self.close()
                        return
                elif isinstance(event, h11.Response):
                    self.status = event.status_code
                    self.headers = dict(event.headers)
                    if self.status != 200:
                        self._most_bytes = REFUSAL_BYTES
                elif isinstance(event, h11.EndOfMessage):
                    self.over = True
                    self.served += 1
                    return
                elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                    return
        except h11.RemoteProtocolError as error:
            if self.status not in (0, 200):
                # What it says of itself is worth more than how it ended.
                self.over = True
                self.close()
                return
            if not got:
                raise self._broken(None, "the connection closed early") from None
            raise self._broken(str(error), "broken HTTP came") from None

    def _broken(self, why: str | None, what: str) -> Misanswered:
        where = "in the middle of its answer" if self.status else "in front of its answer"
        return Misanswered(
            f"openai_server: expected a whole HTTP/1.1 answer from {self._address}, {what} {where}"
            f"{f' ({self._redaction.said(why)})' if why else ''}; see the server's log"
        )

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        until = time.monotonic() + CONNECT_SECONDS
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except _QUIET:
                if time.monotonic() > until:
                    msg = "it does not read"
                    raise Dropped(msg) from None
                select.select([], [self._socket], [], 1.0)
            except OSError as error:
                raise Dropped(_reason(error)) from None


def _open(address: Address, redaction: Redaction) -> socket.socket:
    """Return a connected, non-blocking socket.

    Raises:
        EngineError: nobody answers there.
    """
    try:
        plain = socket.create_connection((address.host, address.port), timeout=CONNECT_SECONDS)
        # A request is one write and must not wait for the acknowledgement of the last one.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected = plain
        if address.secure:
            connected = ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)
        connected.setblocking(False)
    except OSError as error:
        msg = (
            f"openai_server: expected a server at {address}, got: {redaction.said(_reason(error))}; start it, "
            "correct the address, or let -o LABEL.start=COMMAND start it"
        )
        raise EngineError(msg) from None
    return connected


def _reason(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()
