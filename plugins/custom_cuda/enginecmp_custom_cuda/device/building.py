"""A kernel file compiled for a device, and loaded there once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..compiling import cache, compile_cubin, entry, sources
from ..compiling.sources import Defines
from .driver import DriverError

if TYPE_CHECKING:
    from .device import Device
    from .module import Module

REFUSED = ("CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_SOURCE")


def build(device: Device, file: str | Path, defines: Defines) -> Module:
    """Return a kernel file compiled for a device and loaded there; the same call again returns the same module.

    Raises:
        EngineError: as `compile_cubin`, or the driver refuses what the compiler made.
    """
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
