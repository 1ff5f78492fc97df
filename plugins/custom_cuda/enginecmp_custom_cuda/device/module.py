"""Loaded machine code, its kernels, and launches that are prepared once and run often."""

from __future__ import annotations

import ctypes
from typing import Any

from enginecmp import EngineError

from .context import Context
from .driver import ENGINE, DriverError

STATIC_LIMIT = 48 << 10
"""Bytes of shared memory a block has without asking (CUDA C++ Programming Guide, compute capabilities)."""

Grid = int | tuple[int, int, int]


class Module:
    """Machine code on the device; the device's `close` unloads it.

    Attributes:
        name: of the file it was compiled from, as errors name it.
    """

    def __init__(self, context: Context, image: bytes, name: str) -> None:
        self.name = name
        self._context = context
        self._kernels: dict[str, Kernel] = {}
        # The driver copies what it needs. The terminating zero keeps a driver that takes the image for text in bounds.
        self.handle = context.call(
            "cuModuleLoadData",
            image + b"\0",
            expected=f"machine code of {name} that the driver loads",
            fix="update the NVIDIA driver, or remove the kernels in the cache folder",
        )
        context.owned[id(self)] = self.unload

    def kernel(self, name: str) -> Kernel:
        """Return a kernel by its name in the source; the same object every time.

        Raises:
            DriverError: there is none of this name.
        """
        if name not in self._kernels:
            self._kernels[name] = Kernel(self._context, self, name)
        return self._kernels[name]

    def unload(self) -> None:
        """Let it go; its kernels are unusable from here on."""
        self._context.release(self, "cuModuleUnload", self.handle)


class Kernel:
    """A function that the device runs.

    Attributes:
        name: in the source.
        registers: of a thread.
        local_bytes: of a thread; registers that did not fit, or arrays indexed at run time.
        static_shared_bytes: of a block, declared in the source.
        max_threads: most threads of a block.
        parameter_bytes: size of the parameter struct, or None where the driver does not tell.
    """

    def __init__(self, context: Context, module: Module, name: str) -> None:
        self.name = name
        self.module = module
        self._context = context
        fix = "check its name, and that it is declared with KERNEL"
        self.function = context.call(
            "cuModuleGetFunction", module.handle, name.encode(), expected=f"kernel {name} in {module.name}", fix=fix
        )
        self.registers = self._attribute("NUM_REGS")
        self.local_bytes = self._attribute("LOCAL_SIZE_BYTES")
        self.static_shared_bytes = self._attribute("SHARED_SIZE_BYTES")
        self.max_threads = self._attribute("MAX_THREADS_PER_BLOCK")
        self.parameter_bytes = self._parameter_bytes()
        self._dynamic_shared_bytes = STATIC_LIMIT - self.static_shared_bytes

    def allow_shared(self, nbytes: int) -> None:
        """Let blocks have this much dynamic shared memory, where it is more than they have anyway."""
        if nbytes <= self._dynamic_shared_bytes:
            return
        driver = self._context.driver
        self._context.call(
            "cuFuncSetAttribute",
            self.function,
            driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            nbytes,
            expected=f"{nbytes} bytes of dynamic shared memory for a block of {self.name}, "
            f"beside {self.static_shared_bytes} static ones",
            fix="use less shared memory on this device",
        )
        self._dynamic_shared_bytes = nbytes

    def blocks_per_multiprocessor(self, block: int, shared_bytes: int = 0) -> int:
        """Return how many blocks of this kernel fit on one multiprocessor at once."""
        self.allow_shared(shared_bytes)
        return int(
            self._context.call(
                "cuOccupancyMaxActiveBlocksPerMultiprocessor",
                self.function,
                block,
                shared_bytes,
                expected=f"the occupancy of {self.name}",
            )
        )

    def _attribute(self, name: str) -> int:
        driver = self._context.driver
        attribute = getattr(driver.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
        return int(
            self._context.call("cuFuncGetAttribute", attribute, self.function, expected=f"{name} of {self.name}")
        )

    def _parameter_bytes(self) -> int | None:
        try:
            _, size = self._context.call("cuFuncGetParamInfo", self.function, 0, expected="a parameter")
        except (DriverError, RuntimeError):  # no parameter, or a driver older than CUDA 12.4
            return None
        return int(size)


class Launch:
    """A kernel with its grid and parameters; `launch` allocates nothing.

    The parameters are read at every launch, so writing into `params` changes the next one.
    """

    __slots__ = (
        "_argument_address",
        "_arguments",
        "_config",
        "_context",
        "_function",
        "_run",
        "kernel",
        "params",
        "text",
    )

    def __init__(
        self,
        context: Context,
        kernel: Kernel,
        grid: Grid,
        block: int,
        shared_bytes: int,
        params: ctypes.Structure,
        *,
        cooperative: bool,
        overlap: bool,
    ) -> None:
        if kernel.parameter_bytes is not None and ctypes.sizeof(params) != kernel.parameter_bytes:
            msg = (
                f"{ENGINE}: expected {kernel.parameter_bytes} bytes of parameters for {kernel.name}, got "
                f"{ctypes.sizeof(params)} ({type(params).__name__}); make the struct and its mirror agree"
            )
            raise EngineError(msg)
        context.enter()
        kernel.allow_shared(shared_bytes)
        driver = context.driver
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = (grid, 1, 1) if isinstance(grid, int) else grid
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes = shared_bytes
        config.hStream = context.stream
        config.attrs = _attributes(driver, cooperative, overlap)
        config.numAttrs = cooperative + overlap
        self.kernel = kernel
        self.params = params
        self.text = f"a launch of {kernel.name}, grid {grid}, block {block}, {shared_bytes} bytes of shared memory"
        self._arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        self._argument_address = ctypes.addressof(self._arguments)
        self._config = config
        self._context = context
        self._function = kernel.function
        self._run = driver.cuLaunchKernelEx

    def launch(self) -> None:
        """Run the kernel after everything launched before, or record it while a graph is captured.

        Raises:
            DriverError: the driver refuses it, for instance more blocks at once than fit for a cooperative one.
        """
        self._context.enter()
        (status,) = self._run(self._config, self._function, self._argument_address, 0)
        if status:
            raise self._context.failed(status, self.text, "check grid, block and shared memory against the device")


def _attributes(driver: Any, cooperative: bool, overlap: bool) -> list[Any]:
    attributes = []
    if cooperative:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        attributes.append(attribute)
    if overlap:
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        attributes.append(attribute)
    return attributes
