"""Kernels from their sources: compiled where they run, kept in a cache.

`compile_cubin` needs no device; `build` compiles for a device and loads.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from . import cache, sources
from .sources import Defines

if TYPE_CHECKING:
    from ..device import Device, Module

EMULATED = "emulated"
"""The architecture that means "g++, for this machine's CPU"."""

REFUSED = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_SOURCE")


def compile_cubin(file: str | Path, defines: Defines, architecture: str) -> bytes:
    """Return the machine code of a kernel file, from the cache where it is there.

    Args:
        file: a name in kernels/ without ".cu", or a path.
        defines: macro names and values, such as {"WEIGHT": "WEIGHT_Q8_0", "HEAD_DIM": "64"}.
        architecture: "sm_80", "sm_90a", ... or "emulated".

    Raises:
        EngineError: no such file, no compiler for this architecture, or the compiler's log.
    """
    source = sources.find(file)
    return cache.fetch(entry(source, defines, architecture), lambda: compile_now(source, defines, architecture))


def build(device: Device, file: str | Path, defines: Defines) -> Module:
    """Return a kernel file compiled for a device and loaded there; the same call again returns the same module.

    Raises:
        EngineError: as `compile_cubin`, or the driver refuses what the compiler made.
    """
    from ..device import DriverError

    source = sources.find(file)
    name = entry(source, defines, device.architecture)
    if (module := device.modules.get(name)) is not None:
        return module
    image = compile_cubin(source, defines, device.architecture)
    try:
        module = device.load(image, name=source.name)
    except DriverError as error:
        if error.code not in REFUSED:
            raise
        # What came from the cache may be of another machine or of a compiler that called itself the same.
        cache.forget(name)
        module = device.load(compile_cubin(source, defines, device.architecture), name=source.name)
    device.modules[name] = module
    return module


def compile_now(source: Path, defines: Defines, architecture: str) -> bytes:
    """Return the machine code of a source file, compiled now."""
    if architecture == EMULATED:
        from . import gxx

        return gxx.compile(source, defines, sources.INCLUDE_FOLDERS)
    from . import nvrtc

    return nvrtc.compile(source, defines, architecture)


def entry(source: Path, defines: Defines, architecture: str) -> str:
    """Return the name of a compiled file in the cache: a hash of all that it depends on."""
    if architecture == EMULATED:
        from . import gxx

        compiler = gxx.fingerprint()
    else:
        from . import nvrtc

        compiler = nvrtc.fingerprint()
    texts = sorted((path.name, text) for path, text in sources.closure(source).items())
    parts = [release(), architecture, compiler, source.name]
    parts += [f"{name}={value}" for name, value in sources.macros(defines)]
    return cache.key(parts + [part for pair in texts for part in pair])


def release() -> str:
    """Return this package's version, which decides how sources are compiled."""
    try:
        return metadata.version("enginecmp-custom-cuda")
    except metadata.PackageNotFoundError:
        return "not installed"


__all__ = ["EMULATED", "build", "compile_cubin"]
