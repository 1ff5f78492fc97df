"""`cmp fleet-node`: the end of a fleet's channel on a node."""

from __future__ import annotations

import os
import signal

import click


@click.command("fleet-node", short_help="Serve `cmp run --on` on this machine; started by it, not by hand.")
def command() -> int:
    """Serve one host of a fleet on stdin and stdout, until it lets go.

    `cmp run --on` starts this on every node. It keeps files and runs in the cache folder, and runs `cmp run`.
    """
    from enginecmp.placement.serving import serve

    # stdout is for messages alone: whatever else prints goes to stderr.
    out = os.dup(1)
    os.dup2(2, 1)
    # Ends by the end of its stdin, so that a run under way ends in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(out, view) :]

    serve(lambda most: os.read(0, most), write)
    return 0
