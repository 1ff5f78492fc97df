"""The tokens of a call on their way to the device: ids, positions, slots, as many as there are launches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from enginecmp import EngineError

from .gemm import round_up

if TYPE_CHECKING:
    from ...device import Device
    from ...device.graph import Event

Numbers = ArrayLike | int
"""Of tokens: an array on the host, or the address of int32 values on the device."""

STAGED = 4
"""Calls whose tokens may lie in pinned memory at once: so many chunks of a prompt follow one another without a wait."""


def bucket(tokens: int, most: int) -> int:
    """Return the number of tokens that is computed for so many: the rest is left empty."""
    return min(round_up(tokens, 16 if tokens <= 64 else 64), most)


def buckets(most: int) -> list[int]:
    """Return all numbers that `bucket` gives."""
    return sorted({bucket(tokens, most) for tokens in range(1, most + 1)})


class Tokens:
    """Where kernels find the tokens of a call: int32 [3][rows], ids, positions and slots, rows from `bucket`.

    Args:
        device: where.
        address: of room for 3 times `most` numbers there.
        most: rows of a call; from `bucket`.
    """

    def __init__(self, device: Device, address: int, most: int) -> None:
        self._device = device
        self._address = address
        self._most = most
        self._staged = device.pinned(STAGED * 3 * most * 4, "tokens of prompts")
        # Each is recorded behind the copy out of its part of the pinned memory.
        self._copied: list[Event] = [device.event() for _ in range(STAGED)]
        self._next = 0

    def put(self, ids: ArrayLike, position: ArrayLike, slot: ArrayLike, count: int) -> int:
        """Copy tokens from the host, after everything launched before; return their rows.

        The host waits only where the copy before the last `STAGED` ones is not over.

        Args:
            ids: (T,).
            position: (T,).
            slot: (T,).
            count: T.

        Raises:
            EngineError: the three have different lengths, or a graph is being captured.
        """
        numbers = [np.asarray(each, np.int32).ravel() for each in (ids, position, slot)]
        if len({len(each) for each in numbers}) != 1:
            msg = (
                "custom_cuda: expected as many positions and slots as ids, got "
                f"{', '.join(str(len(each)) for each in numbers)}; pass one of each for a token"
            )
            raise EngineError(msg)
        rows, place = bucket(count, self._most), self._next
        self._copied[place].wait()
        at = place * 3 * self._most * 4
        table = self._staged.array[at : at + 3 * rows * 4].view(np.int32).reshape(3, rows)
        table[:, :count] = numbers
        table[:, count:] = -1  # empty
        self._device.copy(self._address, self._staged.address + at, table.nbytes)
        self._copied[place].record()
        self._next = (place + 1) % STAGED
        return rows

    def copy(self, ids: int, position: int, slot: int, count: int) -> int:
        """Copy tokens from addresses that the device reads, or record it while a graph is captured; return their rows.

        Args:
            ids: address of int32 (T,).
            position: the same.
            slot: the same.
            count: T.
        """
        rows = bucket(count, self._most)
        if rows > count:
            self._device.fill(self._address, 3 * rows * 4, 0xFF)
        for place, address in enumerate((ids, position, slot)):
            self._device.copy(self._address + place * rows * 4, address, count * 4)
        return rows

    def close(self) -> None:
        """Free what it has; nothing that was put may be under way."""
        for event in self._copied:
            event.close()
        self._staged.free()
