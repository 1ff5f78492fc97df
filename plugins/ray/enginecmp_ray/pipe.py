"""What runs in a Ray worker on a node: the two ends of `cmp fleet-node`, and nothing of the measurement."""

from __future__ import annotations

import sys

from enginecmp.placement.pipes import CommandChannel


class Pipe:
    """An actor that passes bytes on."""

    def start(self) -> None:
        """Start `cmp fleet-node` in this worker's Python.

        Raises:
            OSError: it cannot be started.
        """
        self._channel = CommandChannel([sys.executable, "-m", "enginecmp", "fleet-node"])

    def write(self, data: bytes) -> None:
        """Send all of it."""
        self._channel.write(data)

    def read(self, most: int) -> bytes:
        """Return what has come, b"" at the end."""
        return self._channel.read(most)

    def why(self) -> str:
        """Return the last of what it said on stderr."""
        return self._channel.why()

    def close(self) -> None:
        """End it."""
        self._channel.close()
