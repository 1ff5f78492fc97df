"""The steps of one sequence alone: as graphs or kernel by kernel; `../persistent/run.py` has another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ...device import Device
    from .step import DecodeStep

SLOT = 0
"""Of a sequence that runs alone."""


def launch_of(step: DecodeStep, *, graph: bool) -> Callable[[], None]:
    """Return what launches a step: as one graph, or kernel by kernel."""
    return step.graph().launch if graph else step.enqueue


class Launcher(Protocol):
    """Launches the steps of the sequence in slot 0.

    Attributes:
        portion: steps of a launch.
    """

    portion: int

    def begin(self, position: int, x: int) -> None:
        """Take a sequence in after its prompt and enqueue the choice of its first id; as `DecodeStep.begin`."""
        ...

    def bind(self, position: int, token: int) -> None:
        """Take a sequence in whose next token is known; as `DecodeStep.bind`."""
        ...

    def enqueue(self, steps: int) -> None:
        """Enqueue so many steps, at most `portion`."""
        ...

    def synchronize(self) -> None:
        """Wait until everything is done."""
        ...


class Steps:
    """A step after the other, as graphs or kernel by kernel.

    Args:
        device: where.
        step: of one sequence.
        graph: launch a step as one graph.
    """

    portion = 1

    def __init__(self, device: Device, step: DecodeStep, *, graph: bool) -> None:
        self._device = device
        self._step = step
        self._launch = launch_of(step, graph=graph)

    def begin(self, position: int, x: int) -> None:
        """Take a sequence in after its prompt."""
        self._step.begin(SLOT, position, x)

    def bind(self, position: int, token: int) -> None:
        """Take a sequence in whose next token is known."""
        self._step.bind(SLOT, position, token)

    def enqueue(self, steps: int) -> None:
        """Enqueue steps."""
        for _ in range(steps):
            self._launch()

    def synchronize(self) -> None:
        """Wait until everything is done."""
        self._device.synchronize()
