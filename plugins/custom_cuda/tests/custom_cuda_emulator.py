"""Runs the kernels of data/emulator_*.cu with arrays in and an array out."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp_custom_cuda.device import Device, build

DATA = Path(__file__).parent / "data"


class Meanings(ctypes.Structure):
    """Params of emulator_meanings.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "b", "c", "out")),
        ("n", ctypes.c_int),
        ("m", ctypes.c_int),
    )


class Threads(ctypes.Structure):
    """Params of emulator_threads.cu."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("a", "out", "counter")),
        ("n", ctypes.c_int),
        ("m", ctypes.c_int),
    )


class Bench:
    """The kernels of one file, on a device; arrays go to the device and the result comes back."""

    def __init__(
        self, device: Device, file: str, params: type[ctypes.Structure], defines: dict[str, str] | None = None
    ) -> None:
        self.device = device
        self.module = build(device, DATA / file, defines or {})
        self.params = params

    def run(
        self,
        name: str,
        out: NDArray[Any],
        *,
        grid: int = 1,
        shared: int = 0,
        cooperative: bool = False,
        n: int = 0,
        m: int = 0,
        **arrays: NDArray[Any],
    ) -> NDArray[Any]:
        """Return what a kernel leaves of `out`; `arrays` are its other pointers."""
        kernel = self.module.kernel(name)
        held = []
        try:
            pointers = {}
            for field, array in {**arrays, "out": out}.items():
                memory = self.device.allocate(array.nbytes, field)
                held.append(memory)
                self.device.upload(memory.address, np.ascontiguousarray(array))
                pointers[field] = memory.address
            params = self.params(**pointers, n=n, m=m)
            self.device.launch(kernel, grid, kernel.max_threads, shared, params, cooperative=cooperative)
            self.device.synchronize()
            return self.device.download(pointers["out"], out.shape, out.dtype)
        finally:
            for memory in held:
                memory.free()
