"""Nodes for tests: `cmp fleet-node` in processes of this machine, each with a cache of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from conftest import FAKE_MODULE

from enginecmp.placement.node import Node
from enginecmp.placement.pipes import CommandChannel

CMP = os.path.join(os.path.dirname(sys.executable), "cmp")

WORDS = ("--engines", "a=fake,b=fake", "--baseline", "a", "--no-gate", "--no-sensors", "--max-extra", "0")


def variables(cache: Path) -> dict[str, str]:
    """Return what makes this machine another one."""
    return {"ENGINECMP_CACHE": str(cache), "CMP_PLUGINS": FAKE_MODULE}


class LocalNodes:
    """A placement on processes of this machine.

    Args:
        folder: for the caches.
        names: of the nodes.
        labels: of all of them.
    """

    def __init__(self, folder: Path, names: str = "ab", labels: Mapping[str, str | float] | None = None) -> None:
        self._folder = folder
        self._nodes = [Node(name=name, labels=labels or {}) for name in names]
        self.channels: dict[str, CommandChannel] = {}

    def nodes(self) -> list[Node]:
        """Return them."""
        return self._nodes

    def open(self, node: Node) -> CommandChannel:
        """Start the node."""
        words = [f"{key}={value}" for key, value in variables(self._folder / node.name).items()]
        channel = CommandChannel(["env", *words, CMP, "fleet-node"])
        self.channels[node.name] = channel
        return channel

    def close(self) -> None:
        """Do nothing."""
