"""Prompts as graphs: launches that come back with the same number of tokens are recorded, and then run together."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...device import Device
    from ...device.graph import Graph
    from .prefill import Program

KEPT_GRAPHS = 24


class Programs:
    """Runs programs of the prefill; from the second time on as a graph.

    A first time may stay the only one, and recording costs as much as some launches.

    Args:
        device: where.
        graphs: whether to record at all.
    """

    def __init__(self, device: Device, *, graphs: bool) -> None:
        self._device = device
        self._record = graphs
        # The program is kept beside its graph: its identity is the key only while it lives.
        self._known: OrderedDict[int, tuple[Program, Graph | None]] = OrderedDict()

    def __call__(self, program: Program) -> None:
        """Run a program after everything launched before."""
        known = self._known.get(id(program))
        if known is None or not self._record:
            program.launch()
            self._known[id(program)] = (program, None)
        else:
            graph = known[1] or self._capture(program)
            self._known[id(program)] = (program, graph)
            graph.launch()
        self._known.move_to_end(id(program))
        while len(self._known) > KEPT_GRAPHS:
            _, (_, old) = self._known.popitem(last=False)
            if old is not None:
                self._device.synchronize()
                old.close()

    def _capture(self, program: Program) -> Graph:
        with self._device.capture() as capture:
            program.launch()
        return capture.graph
