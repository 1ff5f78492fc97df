"""A channel through the stdin and stdout of a command: ssh, kubectl exec, srun, or `cmp fleet-node` itself."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence

_TOLD_BYTES = 4096
_SECONDS_TO_END = 10.0


class CommandChannel:
    """A command whose stdin and stdout are those of `cmp fleet-node`; `enginecmp.placement.placement.Channel`.

    Args:
        command: with its arguments; no shell is between.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        # A file and no pipe: nobody has to read it for the command to go on.
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 closed with the channel
        # Its own session: Ctrl-C reaches the host, which ends its nodes in order.
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            bufsize=0,
            start_new_session=True,
        )

    def write(self, data: bytes) -> None:
        """Send all of it."""
        assert self._process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def read(self, most: int) -> bytes:
        """Return what has come, b"" at the end."""
        assert self._process.stdout is not None
        return self._process.stdout.read(most) or b""

    def close(self) -> None:
        """Close its stdin, end it where it does not end by itself, and let go of what it said."""
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # Now that it has ended, a thread that reads has read the end.
        for file in (self._process.stdout, self._told):
            assert file is not None
            file.close()

    def why(self) -> str:
        """Return the last of what it said on stderr, and its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        with contextlib.suppress(OSError, ValueError):
            end = self._told.seek(0, 2)
            self._told.seek(max(0, end - _TOLD_BYTES))
            lines = self._told.read().decode(errors="replace").strip().splitlines()
            code = self._process.poll()
            return "; ".join([*lines[-3:], *([f"exit code {code}"] if code else [])])
        return ""
