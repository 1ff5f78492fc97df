"""A process group must not outlive the host: a guardian process kills it when the host is gone, by whatever signal.

Python workers call `guard` themselves. An executable is started through this module, as
`python -P -m enginecmp.guardian GUARD_FD COMMAND...`, which leaves a guardian behind and becomes the command.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

NAME = "cmp-guard"
"""Name of a guardian among the processes, so that nobody counts it as a part of the engine."""


def guard(guard_fd: int) -> None:
    """Fork a guardian that kills this process group when the host is gone.

    The host holds the other end of the pipe; the kernel closes it when the host dies, by whatever signal. The
    guardian sleeps in `read` all the time, so it costs nothing.
    """
    if os.fork() != 0:
        os.close(guard_fd)
        return
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
            file.write(NAME)
        os.closerange(0, guard_fd)
        os.closerange(guard_fd + 1, 256)
        while os.read(guard_fd, 1):
            pass
    finally:
        os.killpg(0, signal.SIGKILL)


def prefer_for_oom() -> None:
    """Ask the kernel to choose this process, not the host, when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass


if __name__ == "__main__":
    guard(int(sys.argv[1]))
    prefer_for_oom()
    os.execv(sys.argv[2], sys.argv[2:])
