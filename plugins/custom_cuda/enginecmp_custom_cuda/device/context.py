"""The driver's context of one device: every call goes through it, and knows whether the device is still there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from enginecmp import EngineError

from .driver import ENGINE, DriverError, LostDeviceError, failure

_thread = threading.local()


class Context:
    """A device's primary context and its one stream.

    The driver's current context belongs to a thread: each call makes this one current where it is not. After an error
    that ends the context (`driver.LOST`) every call raises the same `LostDeviceError` at once.

    Attributes:
        driver: `cuda.bindings.driver`.
        device: the driver's device handle.
        stream: the stream of everything that this context does, in order.
        capturing: launches are being recorded into a graph, not run.
        owned: how to free what was made here and is not freed yet, by the identity of its object.
        allocated_bytes: of the device's memory that was allocated here and is not freed yet.
    """

    def __init__(self, driver: Any, device: Any) -> None:
        self.driver = driver
        self.device = device
        self.capturing = False
        self.closed = False
        self.owned: dict[int, Callable[[], None]] = {}
        self.allocated_bytes = 0
        self._lost: LostDeviceError | None = None
        status, self._handle = driver.cuDevicePrimaryCtxRetain(device)
        if int(status):
            raise failure(driver, status, "a context on the device", "see nvidia-smi for what else runs there")
        _thread.context = None
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        try:
            self.stream = self.call("cuStreamCreate", flags, expected="a stream")
        except EngineError:
            driver.cuDevicePrimaryCtxRelease(device)
            raise

    def call(self, function: str, *arguments: Any, expected: str, fix: str = "report this as a bug") -> Any:
        """Call a function of the driver API; return what it returns beside its status.

        Args:
            function: its name.
            arguments: as `cuda.bindings.driver` takes them.
            expected: what should have happened, for the error's line.
            fix: the next step, for the error's line.

        Raises:
            DriverError: the driver's error; `LostDeviceError` from then on where it ends the context.
        """
        self.enter()
        status, *values = getattr(self.driver, function)(*arguments)
        if int(status):
            raise self.failed(status, expected, fix)
        return values[0] if len(values) == 1 else tuple(values)

    def enter(self) -> None:
        """Make this context the thread's current one.

        Raises:
            EngineError: the device is closed.
            LostDeviceError: an earlier error ended the context.
        """
        if self._lost is not None:
            raise self.lost()
        if self.closed:
            msg = f"{ENGINE}: expected an open device, got a closed one; open it again with open_device"
            raise EngineError(msg)
        if getattr(_thread, "context", None) is not self:
            (status,) = self.driver.cuCtxSetCurrent(self._handle)
            if int(status):
                raise self.failed(status, "the device's context", "start a new process")
            _thread.context = self

    def failed(self, status: Any, expected: str, fix: str) -> DriverError:
        """Return the exception of a failed call, and remember when it ends the context."""
        error = failure(self.driver, status, expected, fix)
        if isinstance(error, LostDeviceError):
            self._lost = error
        return error

    def lost(self) -> LostDeviceError:
        """Return the error that ended the context, again."""
        assert self._lost is not None
        return LostDeviceError(str(self._lost), self._lost.code)

    def not_capturing(self, what: str) -> None:
        """Raise EngineError while launches are being recorded into a graph."""
        if self.capturing:
            msg = f"{ENGINE}: expected launches only while a graph is captured, got {what}; do it before or after"
            raise EngineError(msg)

    def release(self, owner: object, function: str, *arguments: Any) -> None:
        """Free what an object had; errors do not matter, what is lost is freed by the end of the process."""
        self.owned.pop(id(owner), None)
        if self.closed:
            return
        if self._lost is None:
            self.enter()
        getattr(self.driver, function)(*arguments)

    def close(self) -> None:
        """Free everything that was made here, the latest first, and let the context go; twice is fine."""
        if self.closed:
            return
        for free in reversed(list(self.owned.values())):
            free()
        self.release(self, "cuStreamDestroy", self.stream)
        self.closed = True
        _thread.context = None
        self.driver.cuDevicePrimaryCtxRelease(self.device)
