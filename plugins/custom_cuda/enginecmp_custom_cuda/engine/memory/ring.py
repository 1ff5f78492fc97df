"""Where kernels leave ids and the host takes them, while both sides run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from enginecmp import EngineError

if TYPE_CHECKING:
    from ...device import Device

EMPTY = -1
SPINS = 2000
"""Looks before the host begins to sleep between them: about as long as a step of a small model."""

EMULATED_NAP_SECONDS = 0.0005

PATIENCE_SECONDS = 0.5
"""Without an id for so long, the device is asked whether it still lives."""


class Ring:
    """Pinned memory, int32 (slots, stride): id n of a sequence is at [n % slots, sequence].

    An entry is `EMPTY` until a kernel writes the id, and again once the host has taken it, so the id is its own flag:
    one 4-byte store, seen whole or not at all. The host must not have more than `slots` ids of a sequence under way.

    Args:
        device: whose kernels write.
        slots: ids of a sequence that may wait to be taken.
        stride: sequences.
    """

    def __init__(self, device: Device, slots: int, stride: int) -> None:
        self.slots = slots
        self.stride = stride
        self._device = device
        # The emulated device needs the processor that looking would take.
        self._spins, self._nap_seconds = (SPINS, 0.0) if device.timed else (1, EMULATED_NAP_SECONDS)
        self._memory = device.pinned(slots * stride * 4, what="the ring of ids")
        self._ids = self._memory.array.view(np.int32).reshape(slots, stride)  # (slots, stride)
        self._ids[:] = EMPTY
        self._taken = [0] * stride

    @property
    def address(self) -> int:
        """Of the memory, on the device."""
        return self._memory.address

    def clear(self, sequence: int) -> None:
        """Forget what a sequence has left, before another takes its place; no step of it may be under way."""
        self._ids[:, sequence] = EMPTY
        self._taken[sequence] = 0

    def take(self, sequence: int) -> int | None:
        """Return the next id of a sequence, or None where it is not there yet."""
        place = self._taken[sequence] % self.slots
        token = int(self._ids[place, sequence])
        if token == EMPTY:
            return None
        self._ids[place, sequence] = EMPTY
        self._taken[sequence] += 1
        return token

    def wait(self, sequence: int) -> int:
        """Return the next id of a sequence as soon as it is there.

        Raises:
            LostDeviceError: the device ended before it wrote one.
            EngineError: everything enqueued is done, and it is not there.
        """
        for _ in range(self._spins):
            if (token := self.take(sequence)) is not None:
                return token
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            if (token := self.take(sequence)) is not None:
                return token
            time.sleep(self._nap_seconds)
        self._device.synchronize()
        if (token := self.take(sequence)) is not None:
            return token
        msg = f"custom_cuda: expected an id of sequence {sequence}, got none from finished steps; enqueue a step first"
        raise EngineError(msg)

    def close(self) -> None:
        """Give the memory back."""
        self._ids = np.empty((0, self.stride), np.int32)
        self._memory.free()
