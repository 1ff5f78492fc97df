"""The device's seconds of work that is recorded as a graph: many replays a sample, several samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..device import Device

SAMPLE_SECONDS = 1e-3
"""Replays of a sample take about so long together: events tell half a microsecond."""

MOST_REPLAYS = 200
SAMPLES = (5, 30)
"""Fewest and most."""


def recorded_seconds(
    device: Device, launches: Sequence[Callable[[], None]], units: int, seconds: float = 0.1, least_nodes: int = 32
) -> tuple[float, ...]:
    """Return the seconds of one unit of work, a value a sample; on a device that is not timed run once, return none.

    Args:
        device: where.
        launches: the work, in order; each may be called many times.
        units: of work in one round of it.
        seconds: to spend, about.
        least_nodes: of the graph: a short round is recorded several times.
    """
    rounds = max(1, least_nodes // len(launches)) if device.timed else 1
    with device.capture() as capture:
        for _ in range(rounds):
            for launch in launches:
                launch()
    try:
        return tuple(one / rounds / units for one in replayed_seconds(device, capture.graph.launch, seconds))
    finally:
        device.synchronize()
        capture.graph.close()


def replayed_seconds(device: Device, replay: Callable[[], None], seconds: float) -> list[float]:
    """Return the seconds of one replay, a value a sample; on a device that is not timed replay once, return none."""
    replay()
    device.synchronize()
    if not device.timed:
        return []
    first, second = device.event(), device.event()

    def sample(replays: int) -> float:
        first.record()
        for _ in range(replays):
            replay()
        second.record()
        return device.elapsed_seconds(first, second) / replays

    once = max(min(sample(1), sample(1)), 1e-7)
    replays = min(MOST_REPLAYS, math.ceil(SAMPLE_SECONDS / once))
    least, most = SAMPLES
    found = [sample(replays) for _ in range(max(least, min(most, int(seconds / (once * replays)))))]
    first.close()
    second.close()
    return found
