"""The CUDA driver API, every call checked: one way in, for a GPU and for the emulator.

`cuda.bindings.driver` looks for libcuda.so.1 once per process. `select` decides beforehand which one it finds: the
machine's driver, or the emulator's library, whose SONAME is the same. So a process drives one or the other, never both.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from enginecmp import EngineError

ENGINE = "custom_cuda"

FUNCTIONS = (
    *("cuInit", "cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString"),
    *("cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDeviceTotalMem"),
    *("cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxSetCurrent", "cuMemGetInfo"),
    *("cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuMemHostGetDevicePointer", "cuMemFreeHost"),
    *("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyAsync", "cuMemsetD8Async"),
    *("cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction"),
    *("cuFuncGetAttribute", "cuFuncSetAttribute", "cuFuncGetParamInfo", "cuLaunchKernelEx"),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    *("cuStreamCreate", "cuStreamDestroy", "cuStreamSynchronize", "cuStreamBeginCapture", "cuStreamEndCapture"),
    *("cuGraphInstantiate", "cuGraphUpload", "cuGraphLaunch", "cuGraphExecDestroy", "cuGraphDestroy"),
    *("cuGraphGetNodes", "cuEventCreate", "cuEventRecord", "cuEventSynchronize", "cuEventElapsedTime"),
    "cuEventDestroy",
)
"""Everything of the driver API that this package calls; the emulator offers these."""

LOST = frozenset(
    {
        "CUDA_ERROR_DEINITIALIZED",
        "CUDA_ERROR_DEVICE_UNAVAILABLE",
        "CUDA_ERROR_ECC_UNCORRECTABLE",
        "CUDA_ERROR_NVLINK_UNCORRECTABLE",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "CUDA_ERROR_CONTEXT_IS_DESTROYED",
        "CUDA_ERROR_ASSERT",
        "CUDA_ERROR_HARDWARE_STACK_ERROR",
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "CUDA_ERROR_MISALIGNED_ADDRESS",
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "CUDA_ERROR_INVALID_PC",
        "CUDA_ERROR_LAUNCH_FAILED",
        "CUDA_ERROR_EXTERNAL_DEVICE",
        "CUDA_ERROR_CONTAINED",
        "CUDA_ERROR_TENSOR_MEMORY_LEAK",
        "CUDA_ERROR_UNKNOWN",
    }
)
"""Errors after which the context is unusable: "the process must be terminated and relaunched" (CUDA driver API)."""

_lock = threading.Lock()
_selected: str | None = None
_library: ctypes.CDLL | None = None


class DriverError(EngineError):
    """A call of the driver API failed.

    Attributes:
        code: the driver's name of the error, such as "CUDA_ERROR_INVALID_VALUE".
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class OutOfMemoryError(DriverError):
    """The device or the host has no room for an allocation."""


class LostDeviceError(DriverError):
    """The context is gone; only a new process helps."""


def select(kind: str) -> Any:
    """Return `cuda.bindings.driver`, initialised, for a GPU ("cuda") or for the CPU ("emulated").

    Raises:
        EngineError: the process already drives the other kind, or there is no driver.
    """
    global _selected
    with _lock:
        if _selected is not None and _selected != kind:
            msg = f"{ENGINE}: expected device {_selected} as before in this process, got {kind}; use a process for each"
            raise EngineError(msg)
        if kind == "emulated":
            _load_emulator()
        from cuda.bindings import driver

        try:
            (status,) = driver.cuInit(0)
        except RuntimeError as error:  # cuda.pathfinder found no libcuda.so.1
            msg = f"{ENGINE}: expected an NVIDIA driver, got none (libcuda.so.1); install one or pass --device emulated"
            raise EngineError(msg) from error
        if int(status):
            name, text = describe(driver, status)
            msg = f"{ENGINE}: expected a working NVIDIA driver, got {name} ({text}); see nvidia-smi"
            raise DriverError(msg, name)
        _selected = kind
        return driver


def _load_emulator() -> None:
    """Load the emulator's library so that every later search for libcuda.so.1 finds it."""
    global _library
    if _library is not None:
        return
    from ..compiling import gxx

    library = ctypes.CDLL(str(gxx.driver_library()), mode=ctypes.RTLD_GLOBAL)
    if ctypes.CDLL("libcuda.so.1")._handle != library._handle:
        msg = f"{ENGINE}: expected no CUDA driver in this process, got libcuda.so.1; emulate in a process of its own"
        raise EngineError(msg)
    _library = library


def describe(driver: Any, status: Any) -> tuple[str, str]:
    """Return an error's name and its text; a code that the driver does not know keeps its number."""
    found, name = driver.cuGetErrorName(status)
    if int(found) or name is None:
        return f"CUDA error {int(status)}", "unknown to this driver"
    found, text = driver.cuGetErrorString(status)
    return name.decode(), text.decode() if not int(found) and text is not None else "no text"


def failure(driver: Any, status: Any, expected: str, fix: str) -> DriverError:
    """Return the exception for a failed call: what was expected, what it got, the next step."""
    name, text = describe(driver, status)
    if name in LOST:
        step = "the device is lost to this process, start a new one"
        return LostDeviceError(f"{ENGINE}: expected {expected}, got {name} ({text}); {step}", name)
    kind = OutOfMemoryError if name == "CUDA_ERROR_OUT_OF_MEMORY" else DriverError
    return kind(f"{ENGINE}: expected {expected}, got {name} ({text}); {fix}", name)
