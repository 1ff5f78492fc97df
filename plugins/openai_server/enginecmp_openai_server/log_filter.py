"""Write on what a server says, the API key taken out: `python -m enginecmp_openai_server.log_filter VARIABLE`.

A process of its own between a started server and the launch's log, so that the engine's clock is not disturbed by it.
Whole lines are written as soon as they are there.
"""

from __future__ import annotations

import os
import select
import sys

from .redaction import Redaction

_PIECE_BYTES = 1 << 16
_LONGEST_LINE_BYTES = 1 << 16
_KEPT_BYTES = 1 << 12
"""Of a line without end so much is kept back, in which a key may just be beginning."""
_QUIET_SECONDS = 0.05


def main() -> None:
    """Copy standard input to standard output until it ends."""
    redaction = Redaction(os.environ.get(sys.argv[1], "").strip())
    held = b""
    while True:
        piece = os.read(0, _PIECE_BYTES)
        held += piece
        # A key that is split over lines is found where they come together.
        if piece and len(held) < _LONGEST_LINE_BYTES and select.select([0], [], [], _QUIET_SECONDS)[0]:
            continue
        whole = held.rfind(b"\n") + 1
        if not piece:
            whole = len(held)
        elif not whole and len(held) >= _LONGEST_LINE_BYTES:
            whole = len(held) - _KEPT_BYTES
        _write(redaction.clean(held[:whole].decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"))
        held = held[whole:]
        if not piece:
            return


def _write(content: bytes) -> None:
    while content:
        content = content[os.write(1, content) :]


if __name__ == "__main__":
    main()
