"""A timer of the kernel that fires at an absolute time of the one clock and can be waited for by asyncio.

asyncio's own timers end in an epoll timeout, which is a whole number of milliseconds; this one is as exact as the
kernel's clock. Python offers it as `os.timerfd_create` from 3.13 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000
_NS = 1_000_000_000


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """One timerfd on CLOCK_MONOTONIC.

    Attributes:
        file: descriptor that becomes readable when the timer fires.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.file: int = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self.file < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._settime = libc.timerfd_settime
        self._settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
        self._setting = _Setting()
        self._address = ctypes.addressof(self._setting)

    def fire_at(self, time_ns: int) -> None:
        """Fire once at a time of the clock; at once where it has passed."""
        value = self._setting.value
        value.seconds, value.nanoseconds = divmod(max(1, time_ns), _NS)
        self._settime(self.file, _ABSOLUTE, self._address, None)

    def fired(self) -> None:
        """Take note that it fired, so that the descriptor is quiet again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.file, 8)

    def close(self) -> None:
        """Let it go."""
        os.close(self.file)
