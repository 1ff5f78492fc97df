"""What an engine brings to a federation: the messages of a round, and the aggregation of what came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from enginecmp_federation.compression import Floats, Parts


class Aggregator(Protocol):
    """The server's side, returned by an engine's `cmp_operation(session, "federation", parameters)`.

    Attributes:
        node_codec: "package.module:Class" of the `NodeCodec` that its nodes speak.
    """

    node_codec: str

    def requests(self, round_number: int, adapter: Sequence[Floats], nodes: int) -> list[bytes]:
        """Return one message for each node, with the adapter's matrices."""

    def opened(self, reply: bytes) -> tuple[Parts, int]:
        """Return what a node sent of its delta, and its number of examples."""

    def aggregate(self, deltas: Sequence[Sequence[Floats]], examples: Sequence[int]) -> list[Floats]:
        """Return the aggregate of all nodes' deltas, matrix by matrix; they may be written over."""


class NodeCodec(Protocol):
    """A node's side of the messages; made as `Class(node)` with the node's number."""

    def opened(self, request: bytes) -> tuple[int, list[Floats]]:
        """Return the round's number and the adapter's matrices."""

    def answer(self, parts: Parts, examples: int) -> bytes:
        """Return the answer to the request that was opened last."""
