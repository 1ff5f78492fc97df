"""`python -P -m enginecmp.worker FD PROGRESS_FD MODULE`: serve one host with one plugin."""

from __future__ import annotations

import os
import socket
import sys

from enginecmp.errors import LaunchError
from enginecmp.plugins.manager import load_object, manager_with
from enginecmp.wire.protocol import Channel, Progress, describe
from enginecmp.worker.worker import Worker


def main(arguments: list[str]) -> int:
    """Serve one host until it closes the socket."""
    fd, progress_fd = map(int, arguments[:2])
    channel = Channel(socket.socket(fileno=fd))
    progress = Progress(progress_fd)
    try:
        worker = Worker(manager_with(load_object(arguments[2])).hook, progress)
    except BaseException as error:  # whatever a plugin raises on import
        channel.send({"error": describe(error)})
        return 1
    channel.send({"ok": os.getpid()})
    while (message := channel.receive()) is not None:
        try:
            if "files" in message:
                message["files"] = channel.receive_files(message["files"])
            channel.send({"ok": worker.operations[message["op"]](message)})
        except LaunchError:
            return 1
        except BaseException as error:  # a Rust panic arrives as a BaseException
            channel.send({"error": describe(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
