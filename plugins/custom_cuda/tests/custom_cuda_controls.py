"""What only tests ask of the emulated device: barriers left out, orders of threads, injected faults.

The stand-in driver is the libcuda.so.1 of this process, which opening the device loads. Nothing here touches a GPU.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal, NamedTuple

from enginecmp import EngineError
from enginecmp_custom_cuda.device import driver

FORWARD, REVERSE, SHUFFLED = 0, 1, 2
MULTIPROCESSORS = 4
MEMORY_BYTES = 8 << 30
PATIENCE_SECONDS = 10.0


class Barrier(NamedTuple):
    """A place in a module's source where threads wait for each other.

    Attributes:
        index: for `remove_barrier`.
        file: as the compiler named it.
        line: counted from 1.
        kind: "syncthreads", "syncwarp", "named barrier", "cp.async wait", "grid dependency wait", or what the source
            gave REMOVABLE.
    """

    index: int  # type: ignore[assignment]  # a tuple's method, which nobody asks of these
    file: str
    line: int
    kind: str


def library() -> ctypes.CDLL:
    """Return the stand-in driver of this process.

    Raises:
        EngineError: no emulated device was opened, or the process drives a GPU.
    """
    loaded = driver._library
    if loaded is None or not hasattr(loaded, "simt_abi"):
        msg = "custom_cuda: expected an emulated device, got none; call open_device('emulated') first"
        raise EngineError(msg)
    return loaded


def barriers(module: Any) -> list[Barrier]:
    """Return all places of a loaded module where threads wait, whether or not one ever came by.

    Args:
        module: a `Module`, or the driver's handle of one.
    """
    return [barrier for barrier, _ in _places(module)]


def used_barriers(module: Any) -> list[Barrier]:
    """Return the places where some thread came by since the module was loaded."""
    return [barrier for barrier, used in _places(module) if used]


def _places(module: Any) -> list[tuple[Barrier, bool]]:
    handle = _handle(module)
    count = library().simt_barrier_count(handle)
    if count < 0:
        msg = "custom_cuda: expected a loaded module, got another handle; pass what Device.load returned"
        raise EngineError(msg)
    found = []
    for index in range(count):
        file, line, kind, used = ctypes.c_char_p(), ctypes.c_int(), ctypes.c_char_p(), ctypes.c_int()
        library().simt_barrier_place(
            handle, index, ctypes.byref(file), ctypes.byref(line), ctypes.byref(kind), ctypes.byref(used)
        )
        place = Barrier(index, (file.value or b"").decode(), line.value, (kind.value or b"").decode())
        found.append((place, bool(used.value)))
    return found


def remove_barrier(module: Any, index: int | None) -> None:
    """Leave one barrier of a module out from now on; None puts all back. No launch may be under way.

    Args:
        module: a `Module`, or the driver's handle of one.
        index: of `barriers`.
    """
    handle = _handle(module)
    count = library().simt_barrier_count(handle)
    if index is not None and not 0 <= index < count:
        msg = f"custom_cuda: expected a barrier of 0..{count - 1}, got {index}; see barriers(module)"
        raise EngineError(msg)
    library().simt_barrier_remove(handle, -1 if index is None else index)


def set_order(order: Literal["forward", "reverse"] | int) -> None:
    """Choose which thread of a block goes on when several can, for launches from now on.

    Args:
        order: "forward" and "reverse": the first or the last, as far as it can go; an integer: at random, that seed,
            with changes of turn at atomics too.
    """
    named = {"forward": FORWARD, "reverse": REVERSE}
    if isinstance(order, str):
        library().simt_set_order(named[order], ctypes.c_ulonglong(0))
    else:
        library().simt_set_order(SHUFFLED, ctypes.c_ulonglong(order))


def set_multiprocessors(count: int = MULTIPROCESSORS) -> None:
    """Choose how many multiprocessors the device has; cooperative launches must fit them."""
    library().simt_set_multiprocessors(count)


def set_memory(nbytes: int = MEMORY_BYTES) -> None:
    """Choose how much memory the device has, in bytes; what is allocated stays."""
    library().simt_set_memory(ctypes.c_size_t(nbytes))


def set_patience(seconds: float = PATIENCE_SECONDS) -> None:
    """Choose how long all threads of a launch may poll memory that does not change, in seconds."""
    library().simt_set_patience(ctypes.c_double(seconds))


def set_overlap(on: bool = True) -> None:
    """Choose whether programmatic launches begin before the one in front of them ends."""
    library().simt_set_overlap(int(on))


def fail(function: str | None, code: int = 0, after: int = 0, times: int = 1) -> None:
    """Let calls of a driver function fail.

    Args:
        function: as the library exports it, such as "cuMemAlloc_v2"; None forgets all faults.
        code: number of the CUresult; 0 forgets this function's fault. One that means a lost device loses it.
        after: how many calls succeed first.
        times: how many fail then; -1 for all.
    """
    library().simt_fail(function.encode() if function else None, code, after, times)


def why_lost() -> str:
    """Return what ended the context, such as the kernel, block and barrier of a dead end; "" while it is there."""
    text = ctypes.create_string_buffer(2048)
    library().simt_why_lost(text, len(text))
    return text.value.decode()


def reset() -> None:
    """Set everything that this module sets to what it is at the start, except removed barriers."""
    fail(None)
    set_order("forward")
    set_multiprocessors()
    set_memory()
    set_patience()
    set_overlap()


def _handle(module: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(int(getattr(module, "handle", module)))
