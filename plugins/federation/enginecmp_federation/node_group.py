"""The nodes of a federation: `python -P -m enginecmp_federation.node_group`, its orders as JSON on standard input.

One process that imports what nodes need and then forks them: fifty interpreters would start for longer than they work.
Each node is a process with a connection of its own to the server and ends when that is closed.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import msgspec
import numpy as np

from enginecmp.plugins.manager import load_object
from enginecmp_federation import planted, small_model, wire
from enginecmp_federation.compression import Floats, compressed
from enginecmp_federation.rounds import NodeCodec
from enginecmp_federation.settings import Parameters


class Orders(msgspec.Struct):
    """What a group of nodes is told.

    Attributes:
        port: of the server on 127.0.0.1.
        token: that proves a node to the server.
        codec: "package.module:Class" of the node's messages.
        settings: of the variant.
        seed: of the run.
        draw: of the nodes' noise or data.
    """

    port: int
    token: str
    codec: str
    settings: Parameters
    seed: int
    draw: int


class _Node:
    """What one node knows, and how it comes to its delta."""

    def __init__(self, orders: Orders, node: int) -> None:
        self._orders, self._node = orders, node
        settings, seed, draw = orders.settings, orders.seed, orders.draw
        self._attacks = planted.is_attacker(settings, seed, draw, node)
        if settings.task == "planted":
            self.examples = 1
            self._planted = planted.split(planted.honest(settings, seed, draw, node), planted.shapes_of(settings))
        else:
            self._model = small_model.model_of(seed)
            self._data = small_model.data_of(self._model, settings, seed, draw, node)
            self.examples = len(self._data.classes)

    def delta(self, round_number: int, adapter: list[Floats]) -> list[Floats]:
        """Return what the node would have the adapter changed by, an attacker's lie included."""
        orders, settings = self._orders, self._orders.settings
        random = np.random.default_rng([orders.seed, 3, orders.draw, self._node, round_number])
        if settings.task == "planted":
            found = self._planted
        else:
            end = small_model.trained(self._model, adapter, self._data, settings.local_steps, small_model.BATCH, random)
            found = [new - old for new, old in zip(end, adapter, strict=True)]
        return [planted.attacked(matrix, settings, random) for matrix in found] if self._attacks else found


def serve(orders: Orders, node: int) -> None:
    """Answer the server until it closes the connection."""
    make: Any = load_object(orders.codec)
    codec: NodeCodec = make(node)
    worker, settings = _Node(orders, node), orders.settings
    with socket.create_connection(("127.0.0.1", orders.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.send(connection, msgspec.json.encode([orders.token, node, os.getpid()]))
        while (request := wire.receive(connection)) is not None:
            delta = worker.delta(*codec.opened(request))
            parts = compressed(delta, settings.compression, settings.top_k_share)
            wire.send(connection, codec.answer(parts, worker.examples))


def main() -> int:
    """Fork the nodes and wait for their end; return 1 where one failed."""
    orders = msgspec.json.decode(sys.stdin.buffer.read(), type=Orders)
    made: Any = load_object(orders.codec)  # imported once, before the fork
    assert made
    for node in range(orders.settings.nodes):
        if os.fork() == 0:
            try:
                serve(orders, node)
            except (BrokenPipeError, ConnectionError, KeyboardInterrupt):
                os._exit(0)  # the server has gone
            except BaseException as error:
                print(f"node {node}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
    failed = False
    for _ in range(orders.settings.nodes):
        failed |= os.wait()[1] != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
