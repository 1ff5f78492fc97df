"""How the emulator orders threads: barriers, what happens without them, fresh memory, grids, launches that overlap."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import custom_cuda_controls as control
import numpy as np
import pytest
from custom_cuda_emulator import DATA, Bench, Threads
from numpy.typing import NDArray

from enginecmp_custom_cuda.compiling import compile_cubin
from enginecmp_custom_cuda.device import Device

Order = Literal["forward", "reverse"] | int
ORDERS: list[Order] = ["forward", "reverse", 1, 2, 3]


@pytest.fixture(scope="module")
def threads(emulated: Device) -> Bench:
    return Bench(emulated, "emulator_threads.cu", Threads)


@pytest.fixture(autouse=True)
def settings(threads: Bench) -> Iterator[None]:
    yield
    control.reset()
    control.remove_barrier(threads.module, None)


def rotated(count: int, rounds: int, step: int = 1) -> list[int]:
    """Return what `count` threads hold after taking their neighbour's value and adding 1, `rounds` times."""
    return [(i + step * rounds) % count + rounds for i in range(count)]


def rotate(threads: Bench, kernel: str) -> list[int]:
    """Run one of the kernels that rotate."""
    sizes = {"rotate": 2 * 128, "rotate_warps": 64, "rotate_pairs": 128, "rotate_blocks": 8 * 32}
    grid = {"rotate": 2, "rotate_blocks": 8}.get(kernel, 1)
    cooperative = kernel == "rotate_blocks"
    if cooperative:
        control.set_multiprocessors(8)
    counter = np.zeros(2, np.uint32)
    out = np.zeros(sizes[kernel], np.int32)
    found = threads.run(kernel, out, grid=grid, cooperative=cooperative, counter=counter, n=5, m=2)
    return [int(value) for value in found]


EXPECTED = {
    "rotate": rotated(128, 5) * 2,
    "rotate_warps": rotated(32, 5) * 2,
    "rotate_pairs": rotated(64, 5) + rotated(64, 7),
    "rotate_blocks": rotated(256, 5, 32),
}
KINDS = {
    "rotate": "syncthreads",
    "rotate_warps": "syncwarp",
    "rotate_pairs": "named barrier",
    "rotate_blocks": "grid barrier",
}


def sites(threads: Bench, kernel: str) -> list[int]:
    """Return the two barriers of a kernel: the first two of its kind behind its name in the source."""
    start = line_of(f"1, {kernel}, Params")
    listed = control.barriers(threads.module)
    return [one.index for one in listed if one.kind == KINDS[kernel] and one.line > start][:2]


def line_of(text: str) -> int:
    """Return the line of the test kernels that holds a text, from 1."""
    lines = (DATA / "emulator_threads.cu").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", list(EXPECTED))
def test_barriers_hold_in_every_order(threads: Bench, kernel: str, order: Order) -> None:
    control.set_order(order)
    assert rotate(threads, kernel) == EXPECTED[kernel]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("kernel", list(EXPECTED))
def test_a_removed_barrier_shows_in_every_order(threads: Bench, kernel: str, which: int, order: Order) -> None:
    control.set_order(order)
    control.remove_barrier(threads.module, sites(threads, kernel)[which])
    assert rotate(threads, kernel) != EXPECTED[kernel]


def test_barriers_are_listed_with_their_places_and_whether_a_thread_came_by(emulated: Device) -> None:
    bench = Bench(emulated, "emulator_threads.cu", Threads)
    fresh = emulated.load(_image(), name="a module of its own")
    listed = control.barriers(fresh)
    assert [one.index for one in listed] == list(range(len(listed)))
    assert {one.file.rsplit("/", 1)[-1] for one in listed} == {"emulator_threads.cu"}
    line = line_of("1, rotate, Params")
    first, second = [one for one in listed if line < one.line < line + 12]
    assert (first.kind, second.kind, second.line - first.line) == ("syncthreads", "syncthreads", 2)
    assert control.used_barriers(fresh) == []
    bench.module = fresh
    assert rotate(bench, "rotate") == EXPECTED["rotate"]
    assert control.used_barriers(fresh) == [first, second]


def _image() -> bytes:
    return compile_cubin(DATA / "emulator_threads.cu", {}, "emulated")


def test_modules_share_nothing(emulated: Device) -> None:
    one, other = (Bench(emulated, "emulator_threads.cu", Threads) for _ in range(2))
    other.module = emulated.load(_image(), name="the same once more")
    control.remove_barrier(one.module, sites(one, "rotate")[0])
    assert rotate(one, "rotate") != EXPECTED["rotate"]
    assert rotate(other, "rotate") == EXPECTED["rotate"]


def test_one_half_of_a_barrier_does_not_wait(threads: Bench) -> None:
    found = threads.run("hand_over", np.zeros(32, np.int32))
    assert found.tolist() == [3 * (31 - lane) for lane in range(32)]
    only = [one.index for one in control.barriers(threads.module) if one.line == line_of("barrier_sync(3, 64)")]
    control.remove_barrier(threads.module, only[0])
    control.set_order("reverse")
    assert threads.run("hand_over", np.zeros(32, np.int32)).tolist() != found.tolist()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [40, 96, 128])
def test_threads_that_left_do_not_hold_the_others_up(threads: Bench, count: int, order: Order) -> None:
    control.set_order(order)
    found = threads.run("leave_early", np.zeros(128, np.int32), n=count)
    assert found.tolist() == [i + 1 if i < count - 1 else 0 for i in range(128)]


# ---- orders


def trace(threads: Bench, order: Order) -> list[int]:
    """Return the numbers of a block's threads in the order in which they came by."""
    control.set_order(order)
    return [int(number) for number in threads.run("order", np.zeros(96, np.int32), counter=np.zeros(1, np.uint32))]


def test_orders_differ_and_seeds_repeat(threads: Bench) -> None:
    assert trace(threads, "forward") == list(range(96))
    assert trace(threads, "reverse") == list(range(95, -1, -1))
    seeds = [trace(threads, seed) for seed in range(1, 5)]
    assert all(sorted(one) == list(range(96)) for one in seeds)
    assert len({tuple(one) for one in seeds}) == 4
    assert trace(threads, 3) == seeds[2]
    # Not only warps change places: inside one, too.
    assert any(abs(a - b) > 1 and a // 32 == b // 32 for a, b in zip(seeds[0], seeds[0][1:], strict=False))


# ---- memory


def test_shared_memory_is_poison_in_every_block(threads: Bench) -> None:
    for _ in range(2):
        found = threads.run("fresh", np.zeros((6, 64), np.uint32), grid=6, shared=128)
        assert set(found.ravel().tolist()) == {0xFFFFFFFF}


def test_device_memory_is_poison_until_it_is_written(emulated: Device) -> None:
    for nbytes in (4, 1000, 300 << 20):
        memory = emulated.allocate(nbytes, "poison")
        end = min(nbytes, 4096)
        assert set(emulated.download(memory.address, (end,), np.uint8).tolist()) == {0xFF}
        assert set(emulated.download(memory.address + nbytes - end, (end,), np.uint8).tolist()) == {0xFF}
        memory.free()


# ---- launches

CHAIN = 12


@pytest.fixture
def chain(threads: Bench, emulated: Device) -> Iterator[NDArray[np.int32]]:
    """Launches of `follow`, each of what the one in front left: x -> 2 x + 1; the results of three ways to run them."""
    memory = emulated.allocate(CHAIN * 256, "a chain")
    kernel = threads.module.kernel("follow")
    found: list[NDArray[np.int32]] = []

    def go() -> NDArray[np.int32]:
        with emulated.capture() as capture:
            for i in range(CHAIN - 1):
                params = Threads(a=memory.address + 256 * i, out=memory.address + 256 * (i + 1), m=1)
                emulated.launch(kernel, 1, 64, 0, params, overlap=i > 0)
        for _ in range(5):
            emulated.upload(memory.address, np.full((CHAIN, 64), 3, np.int32))
            capture.graph.launch()
            emulated.synchronize()
        capture.graph.close()
        return emulated.download(memory.address, (CHAIN, 64), np.int32)

    found.append(go())
    wait = [one.index for one in control.barriers(threads.module) if one.kind == "grid dependency wait"]
    control.remove_barrier(threads.module, wait[0])
    found.append(go())
    control.set_overlap(False)
    found.append(go())
    yield np.stack(found)
    memory.free()


def test_a_launch_that_overlaps_sees_only_what_it_waited_for(chain: NDArray[np.int32]) -> None:
    right = [[value] * 64 for value in (4 * 2**i - 1 for i in range(CHAIN))]
    waited, hurried, apart = chain.tolist()
    assert waited == right
    assert hurried != right
    assert apart == right


def test_the_host_sees_and_changes_pinned_memory_while_a_kernel_runs(threads: Bench, emulated: Device) -> None:
    flag, out = emulated.pinned(4), emulated.pinned(128)
    flag.array[:] = 0
    out.array[:] = 0
    params = Threads(a=flag.address, out=out.address, n=7, m=9)
    emulated.launch(threads.module.kernel("poll"), 1, 32, 0, params)
    assert not out.array.any()  # it polls: the launch came back all the same
    flag.array.view(np.int32)[:] = 7
    emulated.synchronize()
    assert out.array.view(np.int32).tolist() == [9] * 32
    flag.free()
    out.free()
