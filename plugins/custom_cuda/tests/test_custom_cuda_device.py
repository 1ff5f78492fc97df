"""The device API, on the emulator and on a GPU alike: memory, launches, graphs, events, and how each one fails."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import cache, compile_cubin, entry
from enginecmp_custom_cuda.device import (
    Device,
    DriverError,
    Graph,
    LostDeviceError,
    Memory,
    Module,
    OutOfMemoryError,
    build,
    open_device,
)

SOURCE = Path(__file__).with_name("data") / "custom_cuda_device.cu"
THREADS = 64


class Vector(ctypes.Structure):
    """VectorParams of the source."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("n", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("add", ctypes.c_float),
    )


class Meet(ctypes.Structure):
    """MeetParams of the source."""

    _fields_ = (("count", ctypes.c_void_p), ("seen", ctypes.c_void_p))


@pytest.fixture(scope="module")
def module(device: Device) -> Module:
    return build(device, SOURCE, {})


@pytest.fixture
def vector(device: Device) -> Memory:
    """Memory of 1000 float32, all 1."""
    memory = device.allocate(4000, "a vector")
    device.upload(memory.address, np.ones(1000, np.float32))
    return memory


def launch(device: Device, module: Module, vector: Memory, scale: float, add: float) -> None:
    device.launch(module.kernel("affine"), 16, THREADS, 0, Vector(vector.address, 1000, scale, add))


def values(device: Device, memory: Memory) -> list[float]:
    found: list[float] = np.unique(device.download(memory.address, memory.nbytes // 4, np.float32)).tolist()
    return found


# What it is


def test_a_device_describes_itself(device: Device) -> None:
    assert device.kind in ("cuda", "emulated")
    assert device.timed == (device.kind == "cuda")
    assert device.name.isprintable()
    assert device.name
    assert re.fullmatch(r"emulated|sm_\d+a?", device.architecture)
    assert device.capability >= (7, 5)
    assert device.multiprocessors >= 1
    assert device.shared_bytes >= 48 << 10
    assert 0 < device.free_bytes() <= device.total_bytes
    assert device.driver_version >= (13, 0)


def test_an_unknown_kind_of_device_is_refused() -> None:
    with pytest.raises(EngineError, match="expected device cuda or emulated, got 'tpu'"):
        open_device("tpu")


def test_a_device_that_is_not_there_is_refused(device: Device) -> None:
    with pytest.raises(EngineError, match=r"expected device 99 of kind .*, got [0-9]+ devices"):
        open_device(device.kind, 99)


def test_a_process_drives_one_kind_of_device(device: Device) -> None:
    other = "cuda" if device.kind == "emulated" else "emulated"
    with pytest.raises(EngineError, match=f"expected device {device.kind} as before in this process, got {other}"):
        open_device(other)


# Memory


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32, np.float16, np.uint64])
def test_what_is_uploaded_comes_back(device: Device, dtype: type) -> None:
    array: NDArray[Any] = (np.arange(7 * 33) % 251).astype(dtype).reshape(7, 33)
    memory = device.allocate(array.nbytes)
    device.upload(memory.address, array)
    back = device.download(memory.address, (7, 33), dtype)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    device.upload(memory.address, array.T)  # not contiguous
    np.testing.assert_array_equal(device.download(memory.address, (33, 7), dtype), array.T)
    memory.free()


def test_bytes_and_views_can_be_uploaded(device: Device) -> None:
    memory = device.allocate(8)
    device.upload(memory.address, b"ab\0\0")
    device.upload(memory.address + 4, memoryview(b"efgh"))
    assert device.download(memory.address, 8, np.uint8).tobytes() == b"ab\0\0efgh"


def test_empty_arrays_cost_nothing(device: Device, vector: Memory) -> None:
    device.upload(vector.address, np.empty(0, np.float32))
    assert device.download(vector.address, (0, 3), np.float32).shape == (0, 3)
    device.fill(vector.address, 0, 1)
    device.copy(vector.address, vector.address + 4, 0)
    assert values(device, vector) == [1]


def test_fill_and_copy_touch_what_they_are_told(device: Device) -> None:
    memory = device.allocate(32)
    device.fill(memory.address, 32, 0xAB)
    device.fill(memory.address + 4, 8, 1)
    device.copy(memory.address + 16, memory.address + 2, 4)
    expected = b"\xab" * 4 + b"\1" * 8 + b"\xab" * 4 + b"\xab\xab\1\1" + b"\xab" * 12
    assert device.download(memory.address, 32, np.uint8).tobytes() == expected


@pytest.mark.parametrize("nbytes", [0, -1])
def test_memory_without_a_size_is_refused(device: Device, nbytes: int) -> None:
    with pytest.raises(EngineError, match=f"expected a size of at least 1 byte for weights, got {nbytes}"):
        device.allocate(nbytes, "weights")


def test_out_of_memory_names_what_how_much_and_how_much_is_free(device: Device) -> None:
    nbytes = 2 * device.total_bytes
    with pytest.raises(OutOfMemoryError) as caught:
        device.allocate(nbytes, "the KV cache")
    number = r"\d+(\.\d\d)? (bytes|KiB|MiB|GiB)"
    assert re.fullmatch(
        rf"custom_cuda: expected {number} of device memory for the KV cache, got {number} free of {number}; .*",
        str(caught.value),
    )
    assert caught.value.code == "CUDA_ERROR_OUT_OF_MEMORY"
    device.allocate(1 << 10).free()  # and everything goes on


def test_freed_memory_is_free_again_and_freeing_twice_is_fine(device: Device) -> None:
    before = device.free_bytes()
    memory = device.allocate(8 << 20)
    assert device.free_bytes() <= before - (8 << 20)
    memory.free()
    memory.free()
    assert device.free_bytes() == before


def test_the_host_sees_in_pinned_memory_what_a_kernel_writes(device: Device, module: Module) -> None:
    pinned = device.pinned(4000, "a ring")
    assert pinned.array.shape == (4000,)
    assert not pinned.array.any()
    pinned.array.view(np.float32)[:] = 2
    device.launch(module.kernel("affine"), 16, THREADS, 0, Vector(pinned.address, 1000, 3, 1))
    device.synchronize()
    assert np.unique(pinned.array.view(np.float32)).tolist() == [7]
    pinned.free()
    pinned.free()
    assert pinned.array.size == 0


# Code


def test_a_kernel_says_what_it_takes(module: Module) -> None:
    kernel = module.kernel("reverse")
    assert kernel is module.kernel("reverse")
    assert kernel.name == "reverse"
    assert kernel.registers > 0
    assert kernel.local_bytes == 0
    assert kernel.max_threads >= THREADS
    assert kernel.parameter_bytes in (None, ctypes.sizeof(Vector))
    assert kernel.blocks_per_multiprocessor(THREADS) >= 1


def test_a_kernel_that_is_not_there_is_named(module: Module) -> None:
    with pytest.raises(
        DriverError, match=r"expected kernel absent in custom_cuda_device\.cu, got CUDA_ERROR_NOT_FOUND"
    ):
        module.kernel("absent")


def test_the_same_build_is_the_same_module(device: Device, module: Module) -> None:
    assert build(device, SOURCE, {}) is module
    assert build(device, SOURCE, {"OTHER": "1"}) is not module


def test_an_image_that_is_none_is_refused(device: Device) -> None:
    with pytest.raises(DriverError, match=r"expected machine code of nonsense that the driver loads, got CUDA_ERROR_"):
        device.load(b"\x7fELF but not really" * 20, "nonsense")


def test_a_cached_image_that_the_driver_refuses_is_built_again(device: Device) -> None:
    name = entry(SOURCE, {"REFUSED": "1"}, device.architecture)
    cache.write(name, b"\x7fELF of another machine" * 20)
    module = build(device, SOURCE, {"REFUSED": "1"})
    assert module.kernel("affine").registers > 0
    assert cache.read(name) == compile_cubin(SOURCE, {"REFUSED": "1"}, device.architecture)
    assert len(cache.read(name) or b"") > 1000


# Launches


def test_a_launch_takes_its_parameters_by_value(device: Device, module: Module, vector: Memory) -> None:
    params = Vector(vector.address, 1000, 2, 1)
    device.launch(module.kernel("affine"), 16, THREADS, 0, params)
    params.scale, params.n = 1000, 0
    assert values(device, vector) == [3]


def test_a_grid_has_up_to_three_dimensions(device: Device, module: Module, vector: Memory) -> None:
    device.launch(module.kernel("where"), (3, 2, 2), THREADS, 0, Vector(vector.address, 12, 0, 0))
    expected = [[x, y, z] for z in range(2) for y in range(2) for x in range(3)]
    np.testing.assert_array_equal(device.download(vector.address, (12, 3), np.float32), expected)


def test_a_prepared_launch_reads_its_parameters_each_time(device: Device, module: Module, vector: Memory) -> None:
    params = Vector(vector.address, 1000, 2, 0)
    prepared = device.prepare(module.kernel("affine"), 16, THREADS, 0, params)
    assert values(device, vector) == [1]
    prepared.launch()
    params.scale = 5
    prepared.launch()
    assert values(device, vector) == [10]


@pytest.mark.parametrize("shared_bytes", [1 << 10, (48 << 10) + 1024])
def test_blocks_have_the_dynamic_shared_memory_they_ask_for(
    device: Device, module: Module, vector: Memory, shared_bytes: int
) -> None:
    n = shared_bytes // 4 if shared_bytes < 4000 else 1000
    device.upload(vector.address, np.arange(1000, dtype=np.float32))
    # The kernel puts its numbers at the end of the shared memory and reads them back from there.
    device.launch(module.kernel("reverse"), 1, THREADS, shared_bytes, Vector(vector.address, n, shared_bytes, 0))
    expected = np.arange(1000, dtype=np.float32)
    expected[:n] = expected[:n][::-1]
    np.testing.assert_array_equal(device.download(vector.address, 1000, np.float32), expected)


def test_more_shared_memory_than_a_block_can_have_is_refused(device: Device, module: Module, vector: Memory) -> None:
    nbytes = device.shared_bytes + 1
    with pytest.raises(DriverError, match=f"expected {nbytes} bytes of dynamic shared memory for a block of reverse"):
        device.launch(module.kernel("reverse"), 1, THREADS, nbytes, Vector(vector.address, 10, nbytes, 0))


def test_parameters_of_another_size_are_refused(device: Device, module: Module) -> None:
    kernel = module.kernel("affine")
    if kernel.parameter_bytes is None:
        pytest.skip("this driver does not tell the size of parameters")
    with pytest.raises(EngineError, match=r"expected 24 bytes of parameters for affine, got 16 \(Meet\)"):
        device.launch(kernel, 1, THREADS, 0, Meet(0, 0))


def test_an_impossible_block_is_refused_with_its_launch(device: Device, module: Module, vector: Memory) -> None:
    kernel = module.kernel("affine")
    with pytest.raises(
        DriverError, match=r"a launch of affine, grid 2, block 4096, 0 bytes .*, got CUDA_ERROR_INVALID"
    ):
        device.launch(kernel, 2, 4096, 0, Vector(vector.address, 1, 1, 1))
    launch(device, module, vector, 2, 0)  # and everything goes on
    assert values(device, vector) == [2]


def test_blocks_of_a_cooperative_launch_can_wait_for_each_other(device: Device, module: Module) -> None:
    memory = device.allocate(64)
    device.fill(memory.address, 64)
    grid = device.multiprocessors
    params = Meet(memory.address, memory.address + 4)
    device.launch(module.kernel("meet"), grid, THREADS, 0, params, cooperative=True)
    assert device.download(memory.address, 2, np.int32).tolist() == [grid, grid]


def test_more_cooperative_blocks_than_fit_at_once_are_refused(device: Device, module: Module) -> None:
    kernel = module.kernel("meet")
    memory = device.allocate(64)
    grid = device.multiprocessors * kernel.blocks_per_multiprocessor(THREADS) + 1
    with pytest.raises(EngineError, match=rf"at most {grid - 1} blocks of meet at once .*, got {grid}; launch fewer"):
        device.launch(kernel, grid, THREADS, 0, Meet(memory.address, memory.address + 4), cooperative=True)


def test_overlapping_launches_keep_their_order_where_they_wait(device: Device, module: Module, vector: Memory) -> None:
    for scale, add in ((2, 0), (1, 5), (3, 0)):
        params = Vector(vector.address, 1000, scale, add)
        device.launch(module.kernel("patient"), 16, THREADS, 0, params, overlap=True)
    assert values(device, vector) == [21]


def test_another_thread_uses_the_same_device(device: Device, module: Module, vector: Memory) -> None:
    found: list[object] = []

    def work() -> None:
        try:
            launch(device, module, vector, 4, 0)
            found.append(values(device, vector))
        except EngineError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[4]]


# Graphs


@pytest.fixture
def graph(device: Device, module: Module, vector: Memory) -> Graph:
    """x -> 2 x + 1, 2 (2 x + 1) + 1, then the first byte of all is set to 0."""
    with device.capture() as capture:
        launch(device, module, vector, 2, 1)
        launch(device, module, vector, 2, 1)
        device.fill(vector.address + 4, 4)
        device.copy(vector.address, vector.address + 4, 4)
    return capture.graph


def test_captured_work_runs_when_the_graph_is_launched(device: Device, vector: Memory, graph: Graph) -> None:
    assert graph.nodes == 4
    assert values(device, vector) == [1]
    graph.launch()
    assert device.download(vector.address, 4, np.float32).tolist() == [0, 0, 7, 7]
    graph.launch()
    assert device.download(vector.address, 4, np.float32).tolist() == [0, 0, 31, 31]
    graph.close()
    graph.close()


def test_a_closed_graph_does_not_launch(graph: Graph) -> None:
    graph.close()
    with pytest.raises(EngineError, match="expected an open graph, got a closed one"):
        graph.launch()


def test_cooperative_and_overlapping_launches_can_be_captured(device: Device, module: Module, vector: Memory) -> None:
    memory = device.allocate(64)
    with device.capture() as capture:
        device.fill(memory.address, 64)
        device.launch(module.kernel("patient"), 16, THREADS, 0, Vector(vector.address, 1000, 2, 0), overlap=True)
        device.launch(module.kernel("patient"), 16, THREADS, 0, Vector(vector.address, 1000, 1, 1), overlap=True)
        params = Meet(memory.address, memory.address + 4)
        device.launch(module.kernel("meet"), 2, THREADS, 0, params, cooperative=True)
    for _ in range(2):
        capture.graph.launch()
    assert values(device, vector) == [7]
    assert device.download(memory.address, 2, np.int32).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("what", "act"),
    [
        ("a wait for the device", lambda device, memory: device.synchronize()),
        ("a copy to the device", lambda device, memory: device.upload(memory.address, b"1234")),
        ("a copy from the device", lambda device, memory: device.download(memory.address, 1, np.int32)),
        ("an allocation for weights", lambda device, memory: device.allocate(1, "weights")),
        ("an allocation for a ring", lambda device, memory: device.pinned(1, "a ring")),
        ("the loading of a module", lambda device, memory: device.load(b"")),
        ("another capture", lambda device, memory: device.capture().__enter__()),
    ],
)
def test_what_cannot_be_captured_says_so_and_ends_the_capture(
    device: Device, module: Module, vector: Memory, what: str, act: Callable[[Device, Memory], object]
) -> None:
    def capture() -> None:
        with device.capture():
            launch(device, module, vector, 2, 0)
            act(device, vector)

    with pytest.raises(EngineError, match=f"expected launches only while a graph is captured, got {what}"):
        capture()
    launch(device, module, vector, 3, 0)
    assert values(device, vector) == [3]  # what was recorded is gone, and the stream runs


# Time


def test_events_measure_on_the_device(device: Device, module: Module, vector: Memory) -> None:
    first, second = device.event(), device.event()
    wall = time.perf_counter()
    device.record(first)
    for _ in range(20):
        launch(device, module, vector, 1, 0)
    device.record(second)
    seconds = device.elapsed_seconds(first, second)
    assert 0 <= seconds <= time.perf_counter() - wall + 1e-3
    assert device.elapsed_seconds(first, first) == 0
    first.close()
    first.close()


def test_an_event_that_was_never_recorded_is_refused(device: Device) -> None:
    recorded = device.event()
    device.record(recorded)
    with pytest.raises(DriverError, match="record both events first"):
        device.elapsed_seconds(recorded, device.event())


# The end: each in a process of its own


def run(device: Device, script: str) -> list[str]:
    """Return the lines that a script prints, with `device` open in a process of its own."""
    head = f"""
import ctypes, sys
import numpy as np
from pathlib import Path
from enginecmp import EngineError
from enginecmp_custom_cuda.device import build
from enginecmp_custom_cuda.device import open_device
class Vector(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("n", ctypes.c_int), ("scale", ctypes.c_float), ("add", ctypes.c_float)]
def attempt(act):
    try:
        print(act())
    except EngineError as error:
        print(type(error).__name__, error)
device = open_device({device.kind!r})
module = build(device, Path({str(SOURCE)!r}), {{}})
memory = device.allocate(4000)
params = Vector(memory.address, 1000, 1, 0)
def affine():
    device.launch(module.kernel("affine"), 16, {THREADS}, 0, params)
"""
    done = subprocess.run(
        [sys.executable, "-c", head + script], capture_output=True, text=True, timeout=120, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_closing_frees_everything_and_twice_is_fine(device: Device) -> None:
    lines = run(
        device,
        """
device.pinned(100), device.event()
with device.capture() as capture:
    affine()
free = device.free_bytes()
device.close()
device.close()
attempt(affine)
attempt(device.synchronize)
attempt(capture.graph.launch)
attempt(lambda: device.allocate(1))
memory.free()
again = open_device(device.kind)
print(again.free_bytes() > free, again.download(again.allocate(4).address, 1, np.int32).shape)
again.close()
""",
    )
    closed = "EngineError custom_cuda: expected an open device, got a closed one; open it again with open_device"
    assert lines == [closed] * 4 + ["True (1,)"]


def test_a_lost_device_says_so_at_once_and_ever_after(device: Device) -> None:
    lines = run(
        device,
        f"""
with device.capture() as capture:
    affine()
event = device.event()
params.x = 8  # nobody's memory
affine()
attempt(device.synchronize)
params.x = memory.address
for act in (
    device.synchronize, affine, capture.graph.launch, lambda: device.record(event), device.event, device.free_bytes,
    lambda: device.allocate(1), lambda: device.pinned(1), lambda: device.download(memory.address, 1, np.int32),
    lambda: device.upload(memory.address, b"1234"), lambda: device.fill(memory.address, 4),
    lambda: device.prepare(module.kernel("affine"), 1, {THREADS}, 0, params),
):
    attempt(act)
memory.free()
device.close()
device.close()
print("closed")
""",
    )
    assert len(lines) == 14
    assert lines[-1] == "closed"
    assert len(set(lines[:-1])) == 1
    assert re.fullmatch(
        r"LostDeviceError custom_cuda: expected kernels that run to their end, got CUDA_ERROR_ILLEGAL_ADDRESS \(.+\); "
        "the device is lost to this process, start a new one",
        lines[0],
    )


def test_a_lost_device_is_an_engine_error_with_the_drivers_code() -> None:
    assert issubclass(LostDeviceError, DriverError)
    assert issubclass(DriverError, EngineError)
    assert OutOfMemoryError.__name__ == "OutOfMemoryError"  # the host shows this name as "out of memory"
