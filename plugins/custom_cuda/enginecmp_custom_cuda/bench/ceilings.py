"""The part "micro": what the machine can do at most."""

from __future__ import annotations

from .context import Context
from .micro import measure


def run(context: Context) -> None:
    """Measure read bandwidth, launches, nodes of graphs, and barriers."""
    with context.device() as device:
        for one in measure(device):
            context.measured(one)
