"""Server-sent events, piece by piece: bytes in as they come, the data of whole events out.

WHATWG HTML, section 9.2.6 "Interpreting an event stream", as far as a stream of completions needs it: lines end in LF,
CR LF or CR, lines that begin with a colon are comments, an empty line ends an event. Bytes are only turned into text
when an event is whole, so that a character may be cut anywhere.
"""

from __future__ import annotations

from enginecmp import EngineError

_LONGEST_LINE = 1 << 24


class EventParser:
    """Keeps what is not yet a whole event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._skip_newline = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of every event that this piece ends, in order; events without data are left out.

        Raises:
            EngineError: a line without end, of 16 MiB.
        """
        if self._skip_newline and piece:
            piece = piece.removeprefix(b"\n")
            self._skip_newline = False
        events: list[bytes] = []
        lines = (self._rest + piece).splitlines(keepends=True)
        self._rest = b""
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self._rest = lines.pop()
            if len(self._rest) > _LONGEST_LINE:
                msg = (
                    "openai_server: expected a stream of short lines, got one of over 16 MiB; is this an event stream?"
                )
                raise EngineError(msg)
        elif lines and lines[-1].endswith(b"\r"):
            self._skip_newline = True  # its LF may be in the next piece
        for line in lines:
            content = line.rstrip(b"\r\n")
            if not content:
                self._end(events)
            elif content.startswith(b"data:"):
                self._data.append(content[5:].removeprefix(b" "))
        return events

    def finish(self) -> list[bytes]:
        """Return what the end of the stream ends: servers leave out the last empty line."""
        events = self.feed(b"\n") if self._rest else []
        self._end(events)
        return events

    def _end(self, events: list[bytes]) -> None:
        if self._data:
            events.append(b"\n".join(self._data))
            self._data = []
