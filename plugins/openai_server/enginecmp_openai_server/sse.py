"""Server-sent events, piece by piece: bytes in as they come, whole events out.

WHATWG HTML, section 9.2.6 "Interpreting an event stream": one byte order mark may come first; lines end in LF, CR LF or
CR; a line that begins with a colon is a comment; an empty line ends an event. Bytes are only turned into text when an
event is whole, so that a character may be cut anywhere.

No library: httpx-sse reads from its own client and bounds neither a line nor an event.
"""

from __future__ import annotations

from typing import NamedTuple

from enginecmp import EngineError

LONGEST_EVENT_BYTES = 4 << 20
_BOM = b"\xef\xbb\xbf"
_STRAY_BYTES = 4096


class Event(NamedTuple):
    """One event.

    Attributes:
        kind: its name; "" for a plain message.
        data: its lines, without the names of the fields.
    """

    kind: str
    data: bytes


class EventParser:
    """Keeps what is not yet a whole event.

    Attributes:
        stray: the first lines that are no part of an event: what a server says that does not stream.
    """

    def __init__(self) -> None:
        self._begin: bytes | None = b""  # what came while a byte order mark may still be coming; None after that
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._kind = b""
        self._held = 0
        self._skip_newline = False
        self.stray = b""

    def feed(self, piece: bytes) -> list[Event]:
        """Return every event that this piece ends, in order; events without data are left out.

        Raises:
            EngineError: an event of more than `LONGEST_EVENT_BYTES`.
        """
        if self._begin is not None:
            self._begin += piece
            if len(self._begin) < len(_BOM) and _BOM.startswith(self._begin):
                return []
            piece, self._begin = self._begin.removeprefix(_BOM), None
        if not piece:
            return []
        if self._skip_newline:
            piece = piece.removeprefix(b"\n")
            self._skip_newline = False
        events: list[Event] = []
        for line in piece.splitlines(keepends=True):
            self._held += len(line)
            if self._held > LONGEST_EVENT_BYTES:
                msg = (
                    f"openai_server: expected events of at most {LONGEST_EVENT_BYTES >> 20} MiB, got one without an "
                    "end; is this a stream of completions?"
                )
                raise EngineError(msg)
            self._rest += line
            if line.endswith((b"\n", b"\r")):
                self._take(bytes(self._rest).rstrip(b"\r\n"), events)
                self._rest.clear()
        self._skip_newline = piece.endswith(b"\r")  # its LF may be in the next piece
        return events

    def finish(self) -> list[Event]:
        """Return what the end of the stream ends: servers leave out the last empty line."""
        begun, self._begin = self._begin or b"", None
        events = self.feed(begun + b"\n") if self._rest or begun else []
        self._end(events)
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not line:
            self._end(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value
        elif name == b"error":
            # No field of the grammar, but how older llama-servers name an error.
            self._kind = b"error"
            self._data.append(value)
        elif name not in (b"", b"id", b"retry") and len(self.stray) < _STRAY_BYTES:
            self.stray += line[:_STRAY_BYTES] + b"\n"

    def _end(self, events: list[Event]) -> None:
        if self._data:
            events.append(Event(self._kind.decode("utf-8", "replace"), b"\n".join(self._data)))
        self._data = []
        self._kind = b""
        self._held = 0
