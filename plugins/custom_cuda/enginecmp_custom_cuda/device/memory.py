"""Memory of the device, and memory of the host that the device sees."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import EngineError

from .context import Context
from .driver import ENGINE, OutOfMemoryError


class Memory:
    """An allocation on the device; `free` or the device's `close` gives it back.

    Attributes:
        address: on the device.
        nbytes: how many.
        what: it is for, as errors name it.
    """

    def __init__(self, context: Context, nbytes: int, what: str) -> None:
        self.nbytes = checked_size(nbytes, what)
        self.what = what
        self._context: Context | None = context
        try:
            self.address = int(context.call("cuMemAlloc", nbytes, expected=f"memory for {what}"))
        except OutOfMemoryError as error:
            raise no_room(context, error, nbytes, what) from error
        context.owned[id(self)] = self.free
        context.allocated_bytes += nbytes

    def free(self) -> None:
        """Give the memory back; twice is fine. What still runs on the device must not use it."""
        context, self._context = self._context, None
        if context is not None:
            context.allocated_bytes -= self.nbytes
            context.release(self, "cuMemFree", self.address)


class Pinned:
    """Memory of the host that kernels read and write while both sides run.

    Attributes:
        address: of it, on the device.
        array: of it, in this process: uint8, shape (nbytes,). It and its views end with `free`.
        nbytes: how many.
    """

    array: NDArray[np.uint8]

    def __init__(self, context: Context, nbytes: int, what: str) -> None:
        self.nbytes = checked_size(nbytes, what)
        self._context: Context | None = context
        driver = context.driver
        flags = driver.CU_MEMHOSTALLOC_DEVICEMAP | driver.CU_MEMHOSTALLOC_PORTABLE
        try:
            self._host = int(context.call("cuMemHostAlloc", nbytes, flags, expected=f"pinned memory for {what}"))
        except OutOfMemoryError as error:
            msg = f"{ENGINE}: expected {size_text(nbytes)} of pinned host memory for {what}, got none; free host memory"
            raise OutOfMemoryError(msg, error.code) from error
        context.owned[id(self)] = self.free
        expected = f"pinned memory for {what} on the device"
        self.address = int(context.call("cuMemHostGetDevicePointer", self._host, 0, expected=expected))
        self.array = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(self._host))
        self.array[:] = 0

    def free(self) -> None:
        """Give the memory back; twice is fine."""
        context, self._context = self._context, None
        if context is not None:
            self.array = np.empty(0, np.uint8)
            context.release(self, "cuMemFreeHost", self._host)


def checked_size(nbytes: int, what: str) -> int:
    """Return a size that can be allocated."""
    if nbytes < 1:
        msg = f"{ENGINE}: expected a size of at least 1 byte for {what}, got {nbytes}; correct it"
        raise EngineError(msg)
    return nbytes


def no_room(context: Context, error: OutOfMemoryError, nbytes: int, what: str) -> OutOfMemoryError:
    """Return the error of an allocation that does not fit: what, how much, how much is free."""
    free, total = context.call("cuMemGetInfo", expected="the amount of free memory")
    msg = (
        f"{ENGINE}: expected {size_text(nbytes)} of device memory for {what}, got {size_text(int(free))} free of "
        f"{size_text(int(total))}; pass a smaller context, fewer sequences or a smaller model"
    )
    return OutOfMemoryError(msg, error.code)


def size_text(nbytes: int) -> str:
    """Return a size as people read it: 512 bytes, 1.50 MiB, 12.25 GiB."""
    size: float = nbytes
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{nbytes} bytes" if unit == "bytes" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def host_bytes(data: Any) -> NDArray[Any]:
    """Return data as a contiguous array: an array as it is where it can be, any other buffer as bytes."""
    return np.ascontiguousarray(data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8))
