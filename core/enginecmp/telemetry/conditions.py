"""What the sensors saw, shared with the host in a few pages of memory: reading them wakes nobody.

The sampler writes for each condition the intervals in which it held; the host asks which conditions overlap a
request. A reading tells of the time since the one before it, so an interval begins at the last reading without the
condition and ends at the next one without it. Until that comes, the condition counts as held for a while (a sampler
that dies or hangs must not flag everything that follows).
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Collection
from typing import Self

CONDITIONS = 32
"""Conditions that fit, one slot for each sensor that reports one."""

INTERVALS = 1024
"""Latest intervals kept of each."""

NAME_BYTES = 40

_HEAD = struct.Struct(f"<{NAME_BYTES}sq")  # name, intervals begun so far
_INTERVAL = struct.Struct("<qq")  # begin, end
_SLOT_BYTES = _HEAD.size + INTERVALS * _INTERVAL.size


class ConditionPages:
    """Intervals in which conditions held, on the clock of the samples; one writer, one reader.

    Args:
        fd: a file descriptor of at least `SIZE` bytes, shared by both processes.
    """

    SIZE = CONDITIONS * _SLOT_BYTES

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, self.SIZE)
        self._slots: dict[tuple[str, str], int] = {}
        self._held: set[tuple[str, str]] = set()

    @classmethod
    def create(cls) -> tuple[int, Self]:
        """Return a new anonymous file descriptor and its pages."""
        fd = os.memfd_create("cmp-conditions")
        os.ftruncate(fd, cls.SIZE)
        return fd, cls(fd)

    def note(self, sensor: str, held: Collection[str], since_ns: int, now_ns: int, until_ns: int) -> None:
        """Write what one reading of a sensor said; the writer's side, called under one lock.

        Args:
            sensor: its name.
            held: the conditions it reported; more than fit are dropped.
            since_ns: of its reading before.
            now_ns: of this reading.
            until_ns: until when the conditions count as held if no further reading comes.
        """
        for condition in held:
            key = sensor, condition
            if key not in self._slots:
                name = condition.encode()
                if len(self._slots) == CONDITIONS or len(name) > NAME_BYTES:
                    continue
                self._slots[key] = len(self._slots)
                _HEAD.pack_into(self._map, self._slots[key] * _SLOT_BYTES, name, 0)
            at = self._slots[key] * _SLOT_BYTES
            name, begun = _HEAD.unpack_from(self._map, at)
            if key in self._held:
                self._end(at, begun - 1, until_ns)
                continue
            self._held.add(key)
            # The interval before its number: a reader that comes in between sees the old state, never half of it.
            _INTERVAL.pack_into(self._map, at + _HEAD.size + begun % INTERVALS * _INTERVAL.size, since_ns, until_ns)
            _HEAD.pack_into(self._map, at, name, begun + 1)
        for key in [key for key in self._held if key[0] == sensor and key[1] not in held]:
            self._held.discard(key)
            at = self._slots[key] * _SLOT_BYTES
            self._end(at, _HEAD.unpack_from(self._map, at)[1] - 1, now_ns)

    def _end(self, at: int, number: int, end_ns: int) -> None:
        struct.pack_into("<q", self._map, at + _HEAD.size + number % INTERVALS * _INTERVAL.size + 8, end_ns)

    def overlapping(self, start_ns: int, end_ns: int) -> list[str]:
        """Return the conditions that held at some moment from `start_ns` to `end_ns`, sorted; no system call."""
        found = set()
        for slot in range(CONDITIONS):
            at = slot * _SLOT_BYTES
            name, begun = _HEAD.unpack_from(self._map, at)
            if not name[0]:
                break
            for number in range(begun - 1, max(-1, begun - 1 - INTERVALS), -1):
                begin, end = _INTERVAL.unpack_from(self._map, at + _HEAD.size + number % INTERVALS * _INTERVAL.size)
                if end < start_ns:
                    break  # the older ones ended earlier still
                if begin <= end_ns:
                    found.add(name.rstrip(b"\0").decode())
                    break
        return sorted(found)

    def close(self) -> None:
        """Unmap."""
        self._map.close()
