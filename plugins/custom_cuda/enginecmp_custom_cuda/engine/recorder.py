"""Seconds between launches, by events on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from ..device import Device
    from ..device.graph import Event


class PhaseTime(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of phase, over a whole pass.

    Attributes:
        part: "prefill" or "decode".
        name: of the phase.
        count: how often it ran.
        seconds: in all, on the device.
        nbytes: read in all: weights, and keys and values in attention; 0 where nobody knows.
    """

    part: str
    name: str
    count: int
    seconds: float
    nbytes: int

    @property
    def gigabytes_per_second(self) -> float:
        """What was read a second, in 1e9 bytes; 0 where the bytes are not known."""
        return self.nbytes / self.seconds / 1e9 if self.seconds > 0 else 0.0


class Recorder:
    """Events between launches, read when everything is done.

    Args:
        device: whose.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._events: list[Event] = []
        self._used = 0
        self._spans: list[tuple[str, str, int, int]] = []  # part, name, first event, bytes

    def start(self) -> None:
        """Begin a pass: what came before is forgotten, and the clock starts here."""
        self._used = 0
        self._spans.clear()
        self.mark()

    def mark(self) -> int:
        """Record the next event; return its number."""
        if self._used == len(self._events):
            self._events.append(self._device.event())
        self._events[self._used].record()
        self._used += 1
        return self._used - 1

    def end(self, part: str, name: str, nbytes: int = 0) -> None:
        """End a phase that began at the last mark."""
        self._spans.append((part, name, self.mark() - 1, nbytes))

    def totals(self) -> list[PhaseTime]:
        """Wait for the device and add up, in the order in which phases first came."""
        self._device.synchronize()
        found: dict[tuple[str, str], tuple[int, float, int]] = {}
        for part, name, first, nbytes in self._spans:
            count, seconds, whole = found.get((part, name), (0, 0.0, 0))
            span = self._events[first].seconds_until(self._events[first + 1])
            found[part, name] = (count + 1, seconds + span, whole + nbytes)
        return [
            PhaseTime(part=part, name=name, count=count, seconds=seconds, nbytes=nbytes)
            for (part, name), (count, seconds, nbytes) in found.items()
        ]

    def close(self) -> None:
        """Give the events back."""
        for event in self._events:
            event.close()
