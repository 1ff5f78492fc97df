"""Whether the engine can run here: asked of the driver's library itself, without importing anything native."""

from __future__ import annotations

import ctypes
import shutil
import sys
from importlib import metadata

from enginecmp import LoadOptions, Probe

INSTALL = "pip install enginecmp-custom-cuda"
EMULATE = "pass --device emulated to prove it on the CPU"

LEAST_CAPABILITY = (7, 5)
"""The oldest architecture that the compiler of CUDA 13 has code for."""

NVRTC = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}
"""By the major number of cuda-bindings: the compiler of that CUDA, whose machine code needs a driver that knows a CUDA
of the same major number (CUDA Compatibility, "minor version compatibility")."""

LEAST_RELEASE = {13: "580", 12: "525"}
"""Of the NVIDIA driver, by the major number of the CUDA that it knows."""

NO_DEVICE = 100
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CUDA_ERROR_NO_DEVICE and two CUdevice_attribute, from cuda.h."""


def probe(options: LoadOptions) -> Probe:
    """Return whether a device of the wanted kind, and what compiles for it, are here."""
    if options.device not in ("cuda", "emulated"):
        reason = f"runs on cuda and emulated, not on {options.device}"
        return Probe(ok=False, reason=reason, fix="pass --device cuda")
    if sys.platform != "linux":
        return Probe(ok=False, reason=f"runs on Linux, this is {sys.platform}", fix="use Linux, or WSL 2 on Windows")
    # Both devices go through the driver's Python bindings.
    if (missing := missing_package(options.device)) is not None:
        return Probe(ok=False, reason=f"the Python package {missing} is not installed", fix=INSTALL)
    if options.device == "cuda":
        return probe_driver("libcuda.so.1", bindings_major())
    if shutil.which("g++") is None:
        reason = "the emulated device compiles the kernels for the CPU and there is no g++"
        return Probe(ok=False, reason=reason, fix="apt-get install g++")
    return Probe(ok=True)


def missing_package(device: str) -> str | None:
    """Return the first distribution that is needed for a device and not here."""
    needed = ["cuda-bindings"]
    try:
        if device == "cuda":
            needed.append(NVRTC[bindings_major()])
        for distribution in needed:
            metadata.version(distribution)
    except metadata.PackageNotFoundError as error:
        return str(error.name)
    return None


def bindings_major() -> int:
    """Return the major number of the CUDA that cuda-bindings is of: 13, or 12 with the extra cu12.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    return 12 if metadata.version("cuda-bindings").startswith("12.") else 13


def probe_driver(library: str, major: int = 13) -> Probe:
    """Return whether a driver's library finds a GPU that the kernels can be compiled for.

    Args:
        library: name or path of libcuda.so.1.
        major: of the CUDA that the compiler is of.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Probe(ok=False, reason="there is no NVIDIA driver (libcuda.so.1)", fix=f"install it, or {EMULATE}")
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    known = (version.value // 1000, version.value % 1000 // 10)
    if known < (major, 0):
        reason = f"the NVIDIA driver knows CUDA {dotted(known)}, the kernels need {major}.0"
        fix = f"update the NVIDIA driver to release {LEAST_RELEASE[major]} or newer"
        if major > 12 <= known[0]:
            fix += ", or pip install 'enginecmp-custom-cuda[cu12]'"
        return Probe(ok=False, reason=reason, fix=fix)
    count = ctypes.c_int()
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status == NO_DEVICE or (status == 0 and count.value == 0):
        return Probe(ok=False, reason="the NVIDIA driver sees no GPU", fix=f"see CUDA_VISIBLE_DEVICES, or {EMULATE}")
    if status:
        return Probe(ok=False, reason=f"the NVIDIA driver does not start: {error_name(cuda, status)}", fix="nvidia-smi")
    capability = tuple(device_attribute(cuda, which) for which in (CAPABILITY_MAJOR, CAPABILITY_MINOR))
    if capability < LEAST_CAPABILITY:
        reason = f"the GPU has compute capability {dotted(capability)}, the kernels need {dotted(LEAST_CAPABILITY)}"
        return Probe(ok=False, reason=reason, fix=f"use a Turing GPU or a newer one, or {EMULATE}")
    return Probe(ok=True)


def device_attribute(cuda: ctypes.CDLL, which: int) -> int:
    """Return an attribute of device 0, 0 where the driver does not tell."""
    value, device = ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), 0) == 0:
        cuda.cuDeviceGetAttribute(ctypes.byref(value), which, device)
    return value.value


def error_name(cuda: ctypes.CDLL, status: int) -> str:
    """Return the driver's name of an error, else its number."""
    name = ctypes.c_char_p()
    if cuda.cuGetErrorName(status, ctypes.byref(name)) == 0 and name.value is not None:
        return name.value.decode()
    return f"CUDA error {status}"


def dotted(numbers: tuple[int, ...]) -> str:
    """Return (7, 5) as 7.5."""
    return ".".join(map(str, numbers))
