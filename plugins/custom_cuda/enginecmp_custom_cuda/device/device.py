"""One device for the whole engine: a GPU, or the CPU in a GPU's clothes, through the same calls."""

from __future__ import annotations

import contextlib
import ctypes
import math
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from enginecmp import EngineError

from .context import Context
from .driver import ENGINE, failure, select
from .graph import Capture, Event
from .memory import Memory, Pinned, host_bytes
from .module import Grid, Kernel, Launch, Module

LEAST_CAPABILITY = (7, 5)
"""The oldest architecture that the compiler of CUDA 13 knows."""

OVERLAP_CAPABILITY = (9, 0)
"""Programmatic dependent launch exists from here on."""


def open_device(kind: Literal["cuda", "emulated"] | str, ordinal: int = 0) -> Device:
    """Return a device, its context made.

    Args:
        kind: "cuda" for a GPU, "emulated" for the CPU.
        ordinal: which, from 0.

    Raises:
        EngineError: there is none such, with the reason and what fixes it.
    """
    if kind not in ("cuda", "emulated"):
        msg = f"{ENGINE}: expected device cuda or emulated, got '{kind}'; pass --device cuda"
        raise EngineError(msg)
    driver = select(kind)
    status, count = driver.cuDeviceGetCount()
    if int(status) or not 0 <= ordinal < int(count):
        found = 0 if int(status) else int(count)
        msg = f"{ENGINE}: expected device {ordinal} of kind {kind}, got {found} devices; see nvidia-smi"
        raise EngineError(msg)
    status, handle = driver.cuDeviceGet(ordinal)
    if int(status):
        raise failure(driver, status, f"device {ordinal}", "see nvidia-smi")
    return Device(kind, driver, handle)


class Device:
    """A device, its memory and its stream; everything runs in the order of the calls.

    Attributes:
        kind: "cuda" or "emulated".
        name: as the driver calls it.
        capability: (major, minor).
        architecture: to compile for, such as "sm_90a"; "emulated" on the CPU.
        multiprocessors: how many.
        shared_bytes: most shared memory of a block.
        total_bytes: of its memory.
        driver_version: newest CUDA that the driver knows, such as (13, 0).
        timed: False on the CPU, whose times say nothing about a GPU.
        modules: what `build` has loaded here, by the name of its cache entry.
        stream: the driver's handle of the stream, for libraries that take one.
    """

    def __init__(self, kind: str, driver: Any, handle: Any) -> None:
        self.kind = kind
        self.timed = kind == "cuda"
        self.modules: dict[str, Module] = {}
        self._context = Context(driver, handle)
        self._overlap = True
        self.stream = self._context.stream
        try:
            self._describe(handle)
        except EngineError:
            self._context.close()
            raise

    def _describe(self, handle: Any) -> None:
        call = self._context.call
        self.name: str = call("cuDeviceGetName", 256, handle, expected="the device's name").partition(b"\0")[0].decode()
        self.total_bytes = int(call("cuDeviceTotalMem", handle, expected="the size of the device's memory"))
        self.capability = (self.attribute("COMPUTE_CAPABILITY_MAJOR"), self.attribute("COMPUTE_CAPABILITY_MINOR"))
        self.multiprocessors = self.attribute("MULTIPROCESSOR_COUNT")
        self.shared_bytes = self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
        number = int(call("cuDriverGetVersion", expected="the driver's version"))
        self.driver_version = (number // 1000, number % 1000 // 10)
        if self.kind == "emulated":
            self.architecture = "emulated"
            return
        if self.capability < LEAST_CAPABILITY:
            least, found = (".".join(map(str, pair)) for pair in (LEAST_CAPABILITY, self.capability))
            msg = f"{ENGINE}: expected compute capability {least} or more, got {found} ({self.name}); use a newer GPU"
            raise EngineError(msg)
        from ..compiling.nvrtc import architecture_for

        self.architecture = architecture_for(*self.capability)
        self._overlap = self.capability >= OVERLAP_CAPABILITY

    def attribute(self, name: str) -> int:
        """Return a device attribute by its name without CU_DEVICE_ATTRIBUTE_, such as "L2_CACHE_SIZE"."""
        which = getattr(self._context.driver.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(
            self._context.call("cuDeviceGetAttribute", which, self._context.device, expected=f"attribute {name}")
        )

    def free_bytes(self) -> int:
        """Return how much of the device's memory is free now, other processes' use taken off."""
        free, _ = self._context.call("cuMemGetInfo", expected="the amount of free memory")
        return int(free)

    # Memory

    @property
    def allocated_bytes(self) -> int:
        """Bytes of its memory that were allocated here and are not freed yet."""
        return self._context.allocated_bytes

    def allocate(self, nbytes: int, what: str = "a buffer") -> Memory:
        """Return memory of the device, its content undefined.

        Raises:
            OutOfMemoryError: there is no room; the line says for what, how much, and how much is free.
        """
        self._context.not_capturing(f"an allocation for {what}")
        return Memory(self._context, nbytes, what)

    def pinned(self, nbytes: int, what: str = "a buffer") -> Pinned:
        """Return memory of the host that kernels can read and write, zeroed."""
        self._context.not_capturing(f"an allocation for {what}")
        return Pinned(self._context, nbytes, what)

    def upload(self, address: int, array: ArrayLike | bytes | memoryview) -> None:
        """Copy an array, or any buffer, to the device; done on return."""
        self._context.not_capturing("a copy to the device")
        source = host_bytes(array)
        if source.nbytes:
            self._context.call(
                "cuMemcpyHtoDAsync",
                address,
                source.ctypes.data,
                source.nbytes,
                self.stream,
                expected=f"a copy of {source.nbytes} bytes to {address:#x}",
                fix="check the address and the size",
            )
            self.synchronize()

    def download(self, address: int, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return what is at an address, after everything launched before."""
        self._context.not_capturing("a copy from the device")
        target = np.empty(shape, dtype)
        if target.nbytes:
            self._context.call(
                "cuMemcpyDtoHAsync",
                target.ctypes.data,
                address,
                target.nbytes,
                self.stream,
                expected=f"a copy of {target.nbytes} bytes from {address:#x}",
                fix="check the address and the size",
            )
        self.synchronize()
        return target

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copy between memory that kernels use, after all launched before; recorded while a graph is captured."""
        if nbytes:
            expected = f"a copy of {nbytes} bytes from {source:#x} to {target:#x}"
            fix = "check addresses and size"
            # Not cuMemcpyDtoDAsync: either address may be of pinned memory.
            self._context.call("cuMemcpyAsync", target, source, nbytes, self.stream, expected=expected, fix=fix)

    def fill(self, address: int, nbytes: int, byte: int = 0) -> None:
        """Set bytes to a value, after everything launched before; recorded while a graph is captured."""
        if nbytes:
            expected = f"{nbytes} bytes at {address:#x} set to {byte}"
            fix = "check the address and the size"
            self._context.call("cuMemsetD8Async", address, byte, nbytes, self.stream, expected=expected, fix=fix)

    # Code

    def load(self, image: bytes, name: str = "a module") -> Module:
        """Return machine code, loaded.

        Raises:
            DriverError: the driver refuses it.
        """
        self._context.not_capturing(f"the loading of {name}")
        return Module(self._context, image, name)

    def prepare(
        self,
        kernel: Kernel,
        grid: Grid,
        block: int,
        shared_bytes: int,
        params: ctypes.Structure,
        *,
        cooperative: bool = False,
        overlap: bool = False,
    ) -> Launch:
        """Return a launch that can run many times.

        Args:
            kernel: from `Module.kernel`.
            grid: blocks, or (x, y, z).
            block: threads of a block.
            shared_bytes: dynamic shared memory of a block.
            params: the kernel's one argument; read at every launch.
            cooperative: all blocks run at once, so they may wait for each other.
            overlap: may begin before the launch before it has ended (programmatic dependent launch; the kernel
                itself waits). Without effect on devices that cannot.

        Raises:
            EngineError: the size of `params` is not the kernel's, the shared memory is more than a block can have, or
                blocks that may wait for each other do not fit at once.
        """
        overlap = overlap and self._overlap
        if cooperative:
            self._check_fit(kernel, grid, block, shared_bytes)
        return Launch(
            self._context, kernel, grid, block, shared_bytes, params, cooperative=cooperative, overlap=overlap
        )

    def _check_fit(self, kernel: Kernel, grid: Grid, block: int, shared_bytes: int) -> None:
        """Refuse blocks that would wait for others that never begin."""
        wanted = grid if isinstance(grid, int) else math.prod(grid)
        fit = kernel.blocks_per_multiprocessor(block, shared_bytes)
        if wanted > fit * self.multiprocessors:
            msg = (
                f"{ENGINE}: expected at most {fit * self.multiprocessors} blocks of {kernel.name} at once ({fit} on "
                f"each of {self.multiprocessors} multiprocessors, {block} threads, {kernel.registers} registers, "
                f"{kernel.static_shared_bytes + shared_bytes} bytes of shared memory), got {wanted}; launch fewer"
            )
            raise EngineError(msg)

    def launch(
        self,
        kernel: Kernel,
        grid: Grid,
        block: int,
        shared_bytes: int,
        params: ctypes.Structure,
        *,
        cooperative: bool = False,
        overlap: bool = False,
    ) -> None:
        """Run a kernel once, or record it while a graph is captured; arguments as `prepare`."""
        self.prepare(kernel, grid, block, shared_bytes, params, cooperative=cooperative, overlap=overlap).launch()

    def capture(self) -> Capture:
        """Return a context manager that records launches; its `graph` runs them."""
        return Capture(self._context)

    # Time

    def synchronize(self) -> None:
        """Wait until everything is done.

        Raises:
            LostDeviceError: something that ran ended the context; every later call says the same.
        """
        self._context.not_capturing("a wait for the device")
        self._context.call("cuStreamSynchronize", self.stream, expected="kernels that run to their end")

    def event(self) -> Event:
        """Return a new event."""
        return Event(self._context)

    def record(self, event: Event) -> None:
        """Mark the point after everything launched so far."""
        event.record()

    def elapsed_seconds(self, first: Event, second: Event) -> float:
        """Return the device's seconds between two recorded events; waits for the second."""
        return first.seconds_until(second)

    # The end

    def close(self) -> None:
        """Free everything that came from this device; twice is fine."""
        if not self._context.closed:
            with contextlib.suppress(EngineError):  # what is lost is freed all the same
                self.synchronize()
            self.modules.clear()
            self._context.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
