"""The server's end of the nodes: starts their processes and asks them over TCP on the loopback interface."""

from __future__ import annotations

import ctypes
import hmac
import os
import secrets
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence

import msgspec

from enginecmp.errors import EngineError
from enginecmp_federation import wire
from enginecmp_federation.node_group import Orders
from enginecmp_federation.settings import Parameters

_SECONDS = 100.0
"""For a node to connect, and for each of its answers; below the host's own deadline, so that the line is of this."""


class Nodes:
    """All nodes of a federation, each a process.

    Args:
        label: that errors begin with.
        codec: "package.module:Class" of the nodes' messages.
        settings: of the variant.
        seed: of the run.
        draw: of the nodes' noise or data.

    Raises:
        EngineError: a node did not come up.
    """

    def __init__(self, label: str, codec: str, settings: Parameters, seed: int, draw: int) -> None:
        self._label = label
        token = secrets.token_hex(16)
        with socket.create_server(("127.0.0.1", 0), backlog=settings.nodes) as listener:
            listener.settimeout(_SECONDS)
            port = listener.getsockname()[1]
            orders = Orders(port=port, token=token, codec=codec, settings=settings, seed=seed, draw=draw)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "enginecmp_federation.node_group"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                # Nodes share the machine: more threads than one each would only get into each other's way.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            connections: dict[int, socket.socket] = {}
            self._clocks: list[int] = []
            self.close = weakref.finalize(self, _close, self._process, connections)
            assert self._process.stdin is not None
            with self._process.stdin as pipe:
                pipe.write(msgspec.json.encode(orders))
            try:
                while len(connections) < settings.nodes:
                    self._accept(listener, token, settings.nodes, connections)
            except OSError as error:
                self.close()
                msg = (
                    f"{label}: expected {settings.nodes} nodes to connect, got {len(connections)} within {_SECONDS:g} s"
                )
                raise EngineError(msg) from error
        self._connections = [connections[node] for node in range(settings.nodes)]

    def cpu_seconds(self) -> float:
        """Return the processor time that all nodes have taken since they were started.

        Raises:
            EngineError: one has ended.
        """
        try:
            return sum(map(time.clock_gettime, self._clocks))
        except OSError as error:
            msg = f"{self._label}: a node ended early; what it said is in this launch's log"
            raise EngineError(msg) from error

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Send every node its request and return their answers, by node.

        Raises:
            EngineError: a node ended, or did not answer in time.
        """
        node = 0
        try:
            for node, request in enumerate(requests):
                wire.send(self._connections[node], request)
            answers = []
            for node, connection in enumerate(self._connections):
                answer = wire.receive(connection)
                if answer is None:
                    msg = f"{self._label}: node {node} ended without an answer; what it said is in this launch's log"
                    raise EngineError(msg)
                answers.append(answer)
        except (OSError, ValueError) as error:
            msg = f"{self._label}: node {node}: expected an answer within {_SECONDS:g} s, got {error}"
            raise EngineError(msg) from error
        return answers

    def _accept(self, listener: socket.socket, token: str, nodes: int, connections: dict[int, socket.socket]) -> None:
        connection, _ = listener.accept()
        connection.settimeout(_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            said, node, pid = msgspec.json.decode(wire.receive(connection) or b"", type=tuple[str, int, int])
        except (ValueError, OSError):
            said, node, pid = "", -1, -1
        # Whatever else of this machine connects is no node.
        if not hmac.compare_digest(said.encode(), token.encode()) or not 0 <= node < nodes or node in connections:
            connection.close()
            return
        self._clocks.append(_cpu_clock(pid))
        connections[node] = connection


def _cpu_clock(pid: int) -> int:
    """Return the clock of another process's processor time (POSIX, clock_getcpuclockid), for `time.clock_gettime`.

    Raises:
        OSError: there is no such process.
    """
    clock = ctypes.c_int()
    if code := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(code, os.strerror(code))
    return clock.value


def _close(process: subprocess.Popen[bytes], connections: dict[int, socket.socket]) -> None:
    """Close all connections, upon which the nodes end, and wait for them."""
    for connection in connections.values():
        connection.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
