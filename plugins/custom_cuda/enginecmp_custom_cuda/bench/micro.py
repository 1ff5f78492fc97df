"""The part "micro", the machine's limits that a decode step is held against: reading, launching, meeting.

A step of decoding cannot be faster than its weights can be read, nor than its chain of dependent kernels or grid
barriers can be walked; these are both, measured on the machine at hand. Every measurement's result is checked.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator

import numpy as np

from ..device import Device, Launch, Memory, Module, build
from .context import Context
from .measurement import Measurement

THREADS_READ = 512
"""Of a block of `read` and `meet` in micro.cu."""

THREADS_STEP = 32

MOST_READ_BYTES = 4 << 30
"""Many times any cache; a quarter of the free memory where that is less."""

EMULATED_READ_BYTES = 1 << 20

BUSY_BYTES = 1 << 30
"""Read over and over beside barriers."""

MOST_LAPS = 1 << 16
"""Over them: minutes, should no barrier end."""


class ReadParams(ctypes.Structure):
    """ReadParams of micro.cu."""

    _fields_ = (("data", ctypes.c_void_p), ("vectors", ctypes.c_longlong), ("sum", ctypes.c_void_p))


class StepParams(ctypes.Structure):
    """StepParams of micro.cu."""

    _fields_ = (("count", ctypes.c_void_p),)


class MeetParams(ctypes.Structure):
    """MeetParams of micro.cu."""

    _fields_ = (
        ("count", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("vectors", ctypes.c_longlong),
        ("rounds", ctypes.c_int),
        ("laps", ctypes.c_int),
    )


def run(context: Context) -> None:
    """Measure read bandwidth, launches, nodes of graphs, and barriers."""
    with context.device() as device:
        for one in measure(device):
            context.measured(one)


def measure(device: Device, repetitions: int = 20) -> Iterator[Measurement]:
    """Yield every measurement of this file.

    Args:
        device: where; on one that is not timed everything runs once, small, and is only verified.
        repetitions: timed ones of each, after one that is not.
    """
    module = build(device, "micro", {})
    counter = device.allocate(256, "a counter")
    runs = repetitions if device.timed else 0
    yield from read_bandwidth(device, module, counter, runs)
    yield from launches(device, module, counter, runs)
    yield from graph_nodes(device, module, counter, runs)
    yield from barriers(device, module, counter, runs)
    counter.free()


def read_bandwidth(device: Device, module: Module, counter: Memory, runs: int) -> Iterator[Measurement]:
    """Yield the time to read a buffer far larger than the caches, by blocks on a multiprocessor."""
    nbytes = min(MOST_READ_BYTES, device.free_bytes() // 4) // 4096 * 4096 if device.timed else EMULATED_READ_BYTES
    data = device.allocate(nbytes, "the buffer that is read")
    pattern = np.random.default_rng(0).integers(0, 1 << 32, EMULATED_READ_BYTES // 4, np.uint32)
    for offset in range(0, nbytes, pattern.nbytes):
        device.upload(data.address + offset, pattern[: (nbytes - offset) // 4])
    times, rest = divmod(nbytes // 4, pattern.size)
    expected = (times * int(pattern.sum(dtype=np.uint64)) + int(pattern[:rest].sum(dtype=np.uint64))) & 0xFFFFFFFF
    kernel = module.kernel("read")
    most = kernel.blocks_per_multiprocessor(THREADS_READ)
    for blocks in sorted({1, 2, most, 4 * most}):
        grid = blocks * device.multiprocessors
        params = ReadParams(data.address, nbytes // 16, counter.address)
        prepared = device.prepare(kernel, grid, THREADS_READ, 0, params)
        device.fill(counter.address, 4)
        prepared.launch()
        verified = int(device.download(counter.address, 1, np.uint32)[0]) == expected
        seconds = timed(device, prepared.launch, runs)
        yield Measurement("read", {"grid": grid, "bytes": nbytes}, seconds, verified, nbytes)
    data.free()


def launches(device: Device, module: Module, counter: Memory, runs: int, count: int = 200) -> Iterator[Measurement]:
    """Yield the time of one small kernel among many in a stream: on the device, and what Python takes to ask for it."""
    for grid in sorted({1, device.multiprocessors}):
        prepared = steps(device, module, counter, grid, overlap=False)
        verified = counted(device, counter, count, lambda prepared=prepared: repeat(prepared.launch, count))  # type: ignore[misc]
        seconds = timed(device, lambda prepared=prepared: repeat(prepared.launch, count), runs)  # type: ignore[misc]
        yield Measurement("launch in a stream", {"grid": grid}, tuple(one / count for one in seconds), verified)
        host = []
        for _ in range(runs):
            device.synchronize()
            begin = time.perf_counter()
            repeat(prepared.launch, count)
            host.append((time.perf_counter() - begin) / count)
        yield Measurement("launch, the host's part", {"grid": grid}, tuple(host), verified)


def graph_nodes(device: Device, module: Module, counter: Memory, runs: int, count: int = 200) -> Iterator[Measurement]:
    """Yield the time of one small kernel in a graph, each after the other, with and without overlap."""
    for grid in sorted({1, device.multiprocessors}):
        for overlap in (False, True):
            prepared = steps(device, module, counter, grid, overlap=overlap)
            with device.capture() as capture:
                repeat(prepared.launch, count)
            graph = capture.graph
            verified = counted(device, counter, count, graph.launch)
            seconds = timed(device, graph.launch, runs)
            graph.close()
            setting = {"grid": grid, "overlap": int(overlap)}
            yield Measurement("node of a graph", setting, tuple(one / count for one in seconds), verified)


def barriers(device: Device, module: Module, counter: Memory, runs: int) -> Iterator[Measurement]:
    """Yield the time of one barrier of all blocks, one on each multiprocessor: while the memory is idle, and busy."""
    rounds = 1000 if device.timed else 5
    grid = device.multiprocessors
    nbytes = BUSY_BYTES if device.timed else EMULATED_READ_BYTES
    data = device.allocate(nbytes, "what is read meanwhile")
    device.fill(data.address, nbytes)
    for laps in (0, MOST_LAPS if device.timed else 1):
        params = MeetParams(counter.address, data.address, nbytes // 16, rounds, laps)
        prepared = device.prepare(module.kernel("meet"), grid, THREADS_READ, 0, params, cooperative=True)

        def meet(prepared: Launch = prepared) -> None:
            device.fill(counter.address, 4)
            prepared.launch()

        meet()
        verified = int(device.download(counter.address, 1, np.uint32)[0]) == rounds * grid
        seconds = timed(device, meet, runs)
        setting = {"grid": grid, "reading": int(laps > 0)}
        yield Measurement("barrier of the grid", setting, tuple(one / rounds for one in seconds), verified)
    data.free()


def steps(device: Device, module: Module, counter: Memory, grid: int, *, overlap: bool) -> Launch:
    """Return a launch of the kernel that counts its launches."""
    kernel = module.kernel("step_overlapped" if overlap else "step")
    return device.prepare(kernel, grid, THREADS_STEP, 0, StepParams(counter.address), overlap=overlap)


def repeat(act: Callable[[], None], count: int) -> None:
    """Do something so many times."""
    for _ in range(count):
        act()


def counted(device: Device, counter: Memory, count: int, act: Callable[[], None]) -> bool:
    """Return whether the counter says that every step has run once."""
    device.fill(counter.address, 4)
    act()
    return int(device.download(counter.address, 1, np.uint32)[0]) == count


def timed(device: Device, act: Callable[[], None], runs: int) -> tuple[float, ...]:
    """Return the device's seconds of each of some runs."""
    first, second = device.event(), device.event()
    seconds = []
    for _ in range(runs):
        device.record(first)
        act()
        device.record(second)
        seconds.append(device.elapsed_seconds(first, second))
    first.close()
    second.close()
    return tuple(seconds)
