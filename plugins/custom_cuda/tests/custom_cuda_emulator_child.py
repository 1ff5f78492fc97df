"""Scenarios that end the device's context, and calls of the bare driver API: a process of their own runs them all.

Each scenario gets a fresh context and the driver's functions as cuda.bindings gives them. `main` prints one JSON
object: scenario → what it returned, with "stderr" beside it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import custom_cuda_controls as control
import numpy as np
from custom_cuda_emulator import DATA, Meanings, Threads

from enginecmp_custom_cuda.compiling import compile_cubin
from enginecmp_custom_cuda.device import driver as choice

driver: Any = choice.select("emulated")
IMAGE = compile_cubin(DATA / "emulator_threads.cu", {}, "emulated")
WORDS = 256
SCENARIOS: dict[str, Callable[[Raw], Any]] = {}


def scenario(function: Callable[[Raw], Any]) -> Callable[[Raw], Any]:
    """Register a scenario under its own name."""
    SCENARIOS[function.__name__] = function
    return function


class Raw:
    """A context, one stream, one module and three buffers, through the bare API."""

    def __init__(self, image: bytes = IMAGE) -> None:
        self.check(driver.cuCtxSetCurrent(self.check(driver.cuDevicePrimaryCtxRetain(0))))
        self.stream = self.check(driver.cuStreamCreate(1))
        self.module = self.check(driver.cuModuleLoadData(image + b"\0"))
        self.functions: dict[str, Any] = {}
        self.a, self.out, self.counter = (self.allocate(4 * WORDS) for _ in range(3))
        for address in (self.a, self.out, self.counter):
            self.check(driver.cuMemsetD8(address, 0, 4 * WORDS))

    def check(self, answer: tuple[Any, ...]) -> Any:
        """Return a call's value; an error is an exception with its name."""
        status, *values = answer
        if int(status):
            raise RuntimeError(status.name)
        return values[0] if len(values) == 1 else values

    def allocate(self, nbytes: int) -> int:
        return int(self.check(driver.cuMemAlloc(nbytes)))

    def function(self, name: str) -> Any:
        if name not in self.functions:
            self.functions[name] = self.check(driver.cuModuleGetFunction(self.module, name.encode()))
        return self.functions[name]

    def params(self, **values: int) -> ctypes.Structure:
        if "b" in values:
            return Meanings(**{"a": self.a, "out": self.out, **values})
        return Threads(**{"a": self.a, "out": self.out, "counter": self.counter, **values})

    def launch(
        self,
        name: str,
        threads: int = 64,
        grid: tuple[int, int, int] = (1, 1, 1),
        shared: int = 0,
        attributes: tuple[Any, ...] = (),
        extra: int = 0,
        **values: int,
    ) -> str:
        """Launch a kernel; return the name of the call's status."""
        params = self.params(**values)
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes, config.hStream = shared, self.stream
        config.attrs, config.numAttrs = list(attributes), len(attributes)
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        buffers: Any = 0
        if extra:
            size = ctypes.c_size_t(extra)
            buffers = (ctypes.c_void_p * 5)(1, ctypes.addressof(params), 2, ctypes.addressof(size), 0)
        pointer = 0 if extra else ctypes.addressof(pointers)
        (status,) = driver.cuLaunchKernelEx(
            config, self.function(name), pointer, ctypes.addressof(buffers) if extra else 0
        )
        return str(status.name)

    def synchronize(self) -> str:
        return str(driver.cuStreamSynchronize(self.stream)[0].name)

    def read(self, address: int, count: int) -> list[int]:
        """Return int32 values of the device."""
        host = np.zeros(count, np.int32)
        self.check(driver.cuMemcpyDtoH(host.ctypes.data, address, host.nbytes))
        return [int(value) for value in host]


def attribute(kind: str, **values: Any) -> Any:
    """Return a launch attribute."""
    made = driver.CUlaunchAttribute()
    made.id = getattr(driver.CUlaunchAttributeID, f"CU_LAUNCH_ATTRIBUTE_{kind}")
    for name, value in values.items():
        setattr(made.value, name, value)
    return made


def wrong(number: int, **values: Any) -> Callable[[Raw], Any]:
    """Return a scenario: one way to go wrong, then what the driver says of it, and of whatever follows."""

    def go(raw: Raw) -> Any:
        raw.function("fill")  # a lost context finds no more functions
        started = raw.launch("wrong", m=number, **values)
        ended = raw.synchronize()
        after = [raw.launch("fill", n=64, m=1), driver.cuMemAlloc(64)[0].name, driver.cuCtxSynchronize()[0].name]
        return {"started": started, "ended": ended, "after": after, "why": control.why_lost()}

    return go


SCENARIOS |= {
    "dead_end": wrong(0),
    "polls_for_ever": wrong(1),
    "writes_just_behind": wrong(2, n=WORDS - 32),
    "writes_just_before": wrong(2, n=-64),
    "writes_far_behind": wrong(2, n=1 << 24),
    "trap": wrong(3),
    "null_pointer": wrong(4),
    "misaligned_store": wrong(5),
    "shared_behind": wrong(6, shared=256, n=1),
    "shared_before": wrong(6, shared=256, n=-1),
    "endless_recursion": wrong(7),
    "misaligned_stream": wrong(8),
    "mbarrier_not_made": wrong(9, shared=256),
    "not_in_its_mask": wrong(10),
    "barriers_of_two_kinds": wrong(11),
    "operations_of_two_kinds": wrong(12),
    "mbarrier_not_fenced": wrong(13, shared=256),
    "misaligned_bulk_copy": wrong(14, shared=256),
}


@scenario
def writes_between_an_odd_end_and_the_next_page(raw: Raw) -> Any:
    answer = raw.launch("fill", grid=(4, 1, 1), n=251, m=1, out=raw.allocate(1000))
    return [answer, raw.synchronize(), control.why_lost().partition(" at ")[0]]


@scenario
def one_bulk_copy(raw: Raw) -> Any:
    return [raw.launch("wrong", shared=256, n=1, m=13), raw.synchronize(), raw.read(raw.out, 2)]


@scenario
def a_lost_context_is_lost_in_every_stream(raw: Raw) -> Any:
    other = raw.check(driver.cuStreamCreate(0))
    raw.launch("wrong", m=3)
    return [raw.synchronize(), driver.cuStreamSynchronize(other)[0].name, driver.cuModuleUnload(raw.module)[0].name]


@scenario
def a_new_context_after_a_lost_one(raw: Raw) -> Any:
    lost = [raw.launch("wrong", m=3), raw.synchronize()]
    driver.cuDevicePrimaryCtxReset(0)
    fresh = Raw()
    started = fresh.launch("fill", n=64, m=5)
    return [*lost, started, fresh.synchronize(), fresh.read(fresh.out, 64) == [5] * 64]


@scenario
def device_facts(raw: Raw) -> Any:
    numbers = driver.CUdevice_attribute
    names = ["MULTIPROCESSOR_COUNT", "COMPUTE_CAPABILITY_MAJOR", "COOPERATIVE_LAUNCH", "WARP_SIZE"]
    names += ["MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", "MAX_THREADS_PER_BLOCK"]
    facts = [
        raw.check(driver.cuDeviceGetAttribute(getattr(numbers, f"CU_DEVICE_ATTRIBUTE_{name}"), 0)) for name in names
    ]
    name = raw.check(driver.cuDeviceGetName(64, 0)).split(b"\0")[0].decode()
    uuid = raw.check(driver.cuDeviceGetUuid(0)).bytes
    second = driver.cuDeviceGet(1)[0].name
    control.set_multiprocessors(7)
    seven = raw.check(driver.cuDeviceGetAttribute(numbers.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, 0))
    return [facts, name, len(uuid), raw.check(driver.cuDeviceGetCount()), second, seven]


@scenario
def memory_runs_out(raw: Raw) -> Any:
    control.set_memory(1 << 20)
    free, total = raw.check(driver.cuMemGetInfo())
    first = raw.allocate(700_000)
    second = driver.cuMemAlloc(400_000)[0].name
    left, _ = raw.check(driver.cuMemGetInfo())
    raw.check(driver.cuMemFree(first))
    third = driver.cuMemAlloc(400_000)[0].name
    nothing, foreign = driver.cuMemAlloc(0)[0].name, driver.cuMemFree(first + 64)[0].name
    return [total, free - left, second, third, nothing, foreign]


@scenario
def copies_stay_inside(raw: Raw) -> Any:
    host = np.arange(WORDS, dtype=np.int32)
    fits = driver.cuMemcpyHtoD(raw.a, host.ctypes.data, host.nbytes)[0].name
    beyond = driver.cuMemcpyHtoD(raw.a + 4, host.ctypes.data, host.nbytes)[0].name
    from_host = driver.cuMemcpyDtoH(host.ctypes.data, host.ctypes.data, 4)[0].name
    between = driver.cuMemcpyDtoD(raw.out, raw.a, host.nbytes)[0].name
    words = driver.cuMemsetD32(raw.a, 77, 3)[0].name
    return [fits, beyond, from_host, between, words, raw.read(raw.out, WORDS) == list(range(WORDS)), raw.read(raw.a, 4)]


@scenario
def a_copy_keeps_what_pageable_memory_held(raw: Raw) -> Any:
    # The stream is held up until the host has changed what it gave.
    pinned = raw.check(driver.cuMemHostAlloc(64, 0))
    flag = np.ctypeslib.as_array((ctypes.c_int32 * 16).from_address(int(pinned)))
    flag[:] = 0
    raw.launch("poll", threads=32, a=int(raw.check(driver.cuMemHostGetDevicePointer(pinned, 0))), n=1, m=5)
    host = np.arange(WORDS, dtype=np.int32)
    raw.check(driver.cuMemcpyHtoDAsync(raw.a, host.ctypes.data, host.nbytes, raw.stream))
    host[:] = -1
    flag[:] = 1
    back = np.zeros(WORDS, np.int32)
    raw.check(driver.cuMemcpyDtoHAsync(back.ctypes.data, raw.a, back.nbytes, raw.stream))
    raw.synchronize()
    return back.tolist() == list(range(WORDS))


@scenario
def modules_are_looked_at(raw: Raw) -> Any:
    cubin = bytearray(IMAGE)
    cubin[18:20] = (190).to_bytes(2, "little")
    text = driver.cuModuleLoadData(b"int main() { return 0; }\0" + bytes(64))[0].name
    gpu = driver.cuModuleLoadData(bytes(cubin))[0].name
    cut = IMAGE[:4096] + bytes(len(IMAGE) - 4096)
    truncated = driver.cuModuleLoadData(cut)[0].name
    kernel = driver.cuModuleGetFunction(raw.module, b"no_such_kernel")[0].name
    raw.check(driver.cuModuleUnload(raw.module))
    twice = driver.cuModuleUnload(raw.module)[0].name
    again = raw.check(driver.cuModuleLoadDataEx(IMAGE + b"\0", 0, [], []))
    found = driver.cuModuleGetFunction(again, b"fill")[0].name
    return [text, gpu, truncated, kernel, twice, found]


@scenario
def functions_say_what_they_take(raw: Raw) -> Any:
    names = driver.CUfunction_attribute

    def ask(function: str, name: str) -> int:
        number = getattr(names, f"CU_FUNC_ATTRIBUTE_{name}")
        return int(raw.check(driver.cuFuncGetAttribute(number, raw.function(function))))

    facts = [
        ask("rotate", "MAX_THREADS_PER_BLOCK"),
        ask("rotate", "SHARED_SIZE_BYTES"),
        ask("fill", "SHARED_SIZE_BYTES"),
    ]
    offset, nbytes = raw.check(driver.cuFuncGetParamInfo(raw.function("fill"), 0))
    second = driver.cuFuncGetParamInfo(raw.function("fill"), 1)[0].name
    return [facts, offset, nbytes, second]


@scenario
def launches_are_checked(raw: Raw) -> Any:
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    size = ctypes.sizeof(Threads)
    answers = {
        "good": raw.launch("fill", n=64, m=3),
        "threads": raw.launch("fill", threads=65, n=1),
        "no threads": raw.launch("fill", threads=0, n=1),
        "no blocks": raw.launch("fill", grid=(0, 1, 1), n=1),
        "high grid": raw.launch("fill", grid=(1, 65536, 1), n=1),
        "shared": raw.launch("fresh", threads=32, shared=60_000),
        "params": raw.launch("fill", extra=size - 8, n=64, m=4),
        "too many params": raw.launch("fill", extra=size + 8, n=64, m=4),
        "good params": raw.launch("fill", extra=size, n=64, m=4),
        "cluster": raw.launch("fill", attributes=(attribute("CLUSTER_DIMENSION", clusterDim=_cluster(2)),), n=1),
    }
    raw.check(driver.cuFuncSetAttribute(raw.function("fresh"), most, 60_000))
    big = raw.allocate(4 * 64)
    answers["opted in"] = raw.launch("fresh", threads=32, shared=60_000, out=big)
    answers["too much"] = driver.cuFuncSetAttribute(raw.function("fresh"), most, 228 * 1024)[0].name
    return [answers, raw.synchronize(), raw.read(raw.out, 64) == [4] * 64]


def _cluster(x: int) -> Any:
    dimensions = driver.CUlaunchAttribute().value.clusterDim
    dimensions.x, dimensions.y, dimensions.z = x, 1, 1
    return dimensions


@scenario
def cooperative_launches_must_fit(raw: Raw) -> Any:
    function = raw.function("rotate_blocks")
    each = raw.check(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, 32, 0))
    with_shared = raw.check(driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(function, 32, 100_000))
    cooperative = (attribute("COOPERATIVE", cooperative=1),)
    control.set_multiprocessors(2)
    answers = [
        raw.launch(
            "rotate_blocks", threads=32, grid=(blocks, 1, 1), attributes=cooperative, n=1, out=raw.allocate(1 << 16)
        )
        for blocks in (2 * each, 2 * each + 1)
    ]
    return [each, with_shared, answers, raw.synchronize()]


@scenario
def grids_have_three_dimensions(raw: Raw) -> Any:
    raw.launch("place", threads=1, grid=(2, 3, 4))
    return [raw.synchronize(), raw.read(raw.out, 24)]


@scenario
def graphs_replay(raw: Raw) -> Any:
    raw.check(driver.cuStreamBeginCapture(raw.stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    capturing = int(raw.check(driver.cuStreamIsCapturing(raw.stream)))
    # follow: out = 2 a + m, and back again.
    answers = [raw.launch("follow", m=1), raw.launch("follow", a=raw.out, out=raw.a, m=0)]
    graph = raw.check(driver.cuStreamEndCapture(raw.stream))
    before = raw.read(raw.a, 1)
    nodes = raw.check(driver.cuGraphGetNodes(graph))[1]
    executable = raw.check(driver.cuGraphInstantiate(graph, 0))
    raw.check(driver.cuGraphDestroy(graph))
    values = []
    for _ in range(3):
        raw.check(driver.cuGraphLaunch(executable, raw.stream))
        raw.synchronize()
        values.append(raw.read(raw.a, 1)[0])
    raw.check(driver.cuGraphExecDestroy(executable))
    gone = driver.cuGraphLaunch(executable, raw.stream)[0].name
    return [capturing, answers, before, nodes, values, gone]


@scenario
def a_capture_breaks_on_calls_that_wait(raw: Raw) -> Any:
    found = []
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL
    for call in (
        lambda: driver.cuStreamSynchronize(raw.stream),
        lambda: driver.cuMemAlloc(64),
        lambda: driver.cuMemsetD8(raw.a, 0, 4),
        driver.cuCtxSynchronize,
    ):
        raw.check(driver.cuStreamBeginCapture(raw.stream, mode))
        refused = call()[0].name
        found.append([refused, driver.cuStreamEndCapture(raw.stream)[0].name])
    raw.check(driver.cuStreamBeginCapture(raw.stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
    relaxed = driver.cuMemAlloc(64)[0].name
    return [
        found,
        relaxed,
        driver.cuStreamEndCapture(raw.stream)[0].name,
        driver.cuStreamEndCapture(raw.stream)[0].name,
    ]


@scenario
def events_rise(raw: Raw) -> Any:
    first, second, third = (raw.check(driver.cuEventCreate(0)) for _ in range(3))
    early = driver.cuEventElapsedTime(first, second)[0].name
    for event in (first, second):
        raw.check(driver.cuEventRecord(event, raw.stream))
        raw.launch("fill", n=64, m=1)
    raw.check(driver.cuEventSynchronize(second))
    forth, back = (raw.check(driver.cuEventElapsedTime(*pair)) for pair in ((first, second), (second, first)))
    untimed = raw.check(driver.cuEventCreate(2))
    raw.check(driver.cuEventRecord(untimed, raw.stream))
    raw.synchronize()
    refused = driver.cuEventElapsedTime(first, untimed)[0].name
    return [early, forth > 0, back == -forth, refused, driver.cuEventQuery(third)[0].name]


@scenario
def streams_run_apart_until_an_event_joins_them(raw: Raw) -> Any:
    other = raw.check(driver.cuStreamCreate(1))
    event = raw.check(driver.cuEventCreate(2))
    host = raw.check(driver.cuMemHostAlloc(64, 0))
    flag = np.ctypeslib.as_array((ctypes.c_int32 * 16).from_address(int(host)))
    flag[:] = 0
    # The first stream polls what the host sets; the second, empty, comes through; then it waits for the first.
    raw.launch("poll", threads=32, a=int(raw.check(driver.cuMemHostGetDevicePointer(host, 0))), n=1, m=5)
    free = driver.cuStreamSynchronize(other)[0].name
    busy = driver.cuStreamQuery(raw.stream)[0].name
    raw.check(driver.cuEventRecord(event, raw.stream))
    raw.check(driver.cuStreamWaitEvent(other, event, 0))
    waiting = driver.cuStreamQuery(other)[0].name
    flag[:] = 1
    joined = driver.cuStreamSynchronize(other)[0].name
    return [free, busy, waiting, joined, raw.read(raw.out, 32) == [5] * 32]


@scenario
def faults_come_when_they_are_asked_for(raw: Raw) -> Any:
    raw.function("fill")
    control.fail("cuMemAlloc_v2", 2, after=2)
    answers = [driver.cuMemAlloc(64)[0].name for _ in range(4)]
    control.fail("cuStreamSynchronize", 719)
    return [answers, raw.synchronize(), raw.launch("fill", n=1), control.why_lost()]


@scenario
def rings_that_do_not_wait(raw: Raw) -> Any:
    image = compile_cubin(DATA / "emulator_meanings.cu", {}, "emulated")
    found = {}
    for kind in ("none", "full", "empty"):
        for order in ("forward", "reverse", 1, 2):
            driver.cuDevicePrimaryCtxReset(0)
            ring = Raw(image)
            control.set_order(order)
            for one in control.barriers(ring.module):
                if one.kind == kind:
                    control.remove_barrier(ring.module, one.index)
            data = ring.allocate(8 * 1024)
            ring.check(driver.cuMemsetD32(data, 3, 8 * 256))
            ring.launch("ring", threads=96, shared=2048, a=data, b=0, n=8, m=2)
            ended = ring.synchronize()
            found[f"{kind} {order}"] = ring.read(ring.out, 64) if ended == "CUDA_SUCCESS" else ended
    return found


@scenario
def what_is_not_there_says_so(raw: Raw) -> Any:
    os.environ["CMP_EMULATOR_VERBOSE"] = "1"
    answers = [driver.cuMemPoolDestroy(driver.CUmemoryPool())[0].name for _ in range(2)]
    del os.environ["CMP_EMULATOR_VERBOSE"]
    named = raw.check(driver.cuGetErrorString(driver.CUresult.CUDA_ERROR_NOT_SUPPORTED)).decode()
    return [answers, named]


@scenario
def calls_want_a_context(raw: Raw) -> Any:
    driver.cuCtxSetCurrent(driver.CUcontext(0))
    return driver.cuMemAlloc(64)[0].name


def captured(go: Callable[[], Any]) -> tuple[Any, str]:
    """Return what a function returns, and what the process wrote to stderr meanwhile."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            value = go()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return value, file.read().decode()


def main() -> None:
    """Run every scenario in a fresh context."""
    found = {}
    for name, go in SCENARIOS.items():
        control.reset()
        control.set_patience(0.3)
        value, stderr = captured(lambda go=go: go(Raw()))  # type: ignore[misc]
        driver.cuDevicePrimaryCtxReset(0)
        found[name] = {"value": value, "stderr": stderr}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
