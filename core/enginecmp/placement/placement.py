"""The interface that a placement implements, and how one is found by the value of `--on`.

A placement knows nodes, and opens a channel to a program on one of them: the stdin and stdout of `cmp fleet-node`
there. Everything else (weights, runs, results, Ctrl-C) is said over that channel and is the same for all placements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Protocol

from enginecmp.errors import UsageError, did_you_mean
from enginecmp.format.text import plain
from enginecmp.placement.node import Node, check_nodes

GROUP = "enginecmp.placements"
"""Entry-point group; a name of it is what stands before the first colon of `--on`."""


class Channel(Protocol):
    """Both ends of `cmp fleet-node` on a node."""

    def write(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: the other end is gone.
        """

    def read(self, most: int) -> bytes:
        """Return between 1 and `most` bytes as soon as there are any; b"" when the other end is gone."""

    def close(self) -> None:
        """Let go, so that the other end reads an end of file; any thread may call it, and more than once."""

    def why(self) -> str:
        """Return what is known of why the other end is gone, "" where nothing is; foreign text as it came."""


class Placement(Protocol):
    """Where runs can be placed."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that there are now."""

    def open(self, node: Node) -> Channel:
        """Start `cmp fleet-node` on a node and return its stdin and stdout.

        Called from several threads at once, at most once at a time for one node.

        Raises:
            OSError: it cannot be reached.
            CmpError: the same, with a next step.
        """

    def close(self) -> None:
        """Let go of whatever all channels share; called once, after the last channel was closed."""


Factory = Callable[[str], Placement]
"""Makes a placement out of what stands behind the colon of `--on`: "hosts.toml", "//head:10001", "" for nothing.

Raises:
    UsageError: that names nothing.
"""


def find_placement(where: str) -> tuple[Placement, list[Node]]:
    """Return the placement that `--on` names, and its nodes.

    Only the one that is named is imported: `ssh` is built in, others are entry points of `enginecmp.placements`.

    Raises:
        UsageError: there is none of that name, it cannot be imported, or it has no usable nodes.
    """
    name, _, rest = where.partition(":")
    placement = _factory(name)(rest)
    return placement, check_nodes(list(placement.nodes()), f"--on {where}")


def _factory(name: str) -> Factory:
    if name == "ssh":
        from enginecmp.placement.ssh import SshPlacement

        return SshPlacement
    entries = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if name not in entries:
        install = (
            "; install it with: pip install enginecmp-ray" if name == "ray" else did_you_mean(name, ("ssh", *entries))
        )
        msg = f"--on {plain(name)}: no placement of that name is installed{install}"
        raise UsageError(msg)
    try:
        found: Factory = entries[name].load()
    except Exception as error:
        msg = f"--on {name}: {entries[name].value} cannot be imported: {type(error).__name__}: {plain(str(error), 300)}"
        raise UsageError(msg) from error
    return found
