"""Every place where the prefill's threads wait is needed: without it a comparison or a launch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from custom_cuda_controls import Barrier, barriers, remove_barrier, set_order
from custom_cuda_prefill_parts import Bench, bench
from numpy.typing import NDArray
from test_custom_cuda_prefill_attention import Piece, case

from enginecmp import EngineError
from enginecmp_custom_cuda.device import Device, build
from enginecmp_custom_cuda.engine.prefill.gemm import Activation

ORDERS = ("forward", "reverse", 1)

Work = Callable[[Bench], NDArray[np.float32]]


@pytest.fixture(autouse=True)
def _orders(emulated: Device) -> Iterator[None]:
    yield
    set_order("forward")


def gemm(kind: str, activation: Activation, shape: str, tokens: int, rows: int, columns: tuple[int, ...]) -> Work:
    """Return the work of one GEMM kernel: one tile, more stages of columns than fit in shared memory at once."""
    random = np.random.default_rng(0)
    x = random.standard_normal((tokens, max(columns))).astype(np.float32)
    weights = random.standard_normal((rows, max(columns))).astype(np.float32)

    def work(it: Bench) -> NDArray[np.float32]:
        it.shape = shape
        found = [it.multiply(x[:, :width], weights[:, :width], kind, activation).ravel() for width in columns]
        return np.concatenate(found)

    return work


def attention(kernel: str) -> Work:
    """Return the work of an attention module: several pages, several runs."""
    made = case([Piece(0, 150, 5), Piece(1, 70, 2)], heads=2, kv_heads=1, head_dim=16, seed=1)

    def work(it: Bench) -> NDArray[np.float32]:
        return it.attend(kernel, made.q, made.pages, made.position, made.slot, 7).ravel()

    return work


def split_attention(it: Bench) -> NDArray[np.float32]:
    """Work of attention_split.cu: a token with two splits, one with a single split."""
    made = case([Piece(0, 300, 1), Piece(1, 130, 1)], heads=2, kv_heads=1, head_dim=16, seed=1)
    return it.attend_split(made.q, made.pages, made.position, made.slot, 2).ravel()


def norms(it: Bench) -> NDArray[np.float32]:
    """Work of prefill.cu: every kernel with a barrier."""
    x = np.random.default_rng(2).standard_normal((3, 1056)).astype(np.float32) * np.float32([[1], [30], [0.1]])
    norm = np.ones(1056)
    found = [it.rows("norm_f32", x, np.float32, norm)[0], it.rows("norm_f16", x, np.float16, norm)[0]]
    found += [it.rows("norm_bf16", x, np.uint16, norm)[0], it.rows("norm_s8", x, np.int8, norm)[1]]
    return np.concatenate([each.astype(np.float32).ravel() for each in found])


class Kernels(NamedTuple):
    """Kernels of one module under test.

    Attributes:
        source: the module's.
        defines: besides the bench's.
        waits: places where they wait.
        work: that comes by all of these.
    """

    source: str
    defines: dict[str, str]
    waits: int
    work: Work


Q8 = {"WEIGHT": "WEIGHT_Q8_0"}
F32 = {"WEIGHT": "WEIGHT_F32"}
KERNELS = {
    "gemm_mma small": Kernels("gemm_mma", Q8, 4, gemm("Q8_0", "s8", "gemm_small", 16, 64, (1024, 704))),
    "gemm_mma medium": Kernels("gemm_mma", Q8, 4, gemm("Q8_0", "s8", "gemm_medium", 64, 64, (1024, 896))),
    # Its warps share no sums.
    "gemm_mma large": Kernels("gemm_mma", Q8, 2, gemm("Q8_0", "s8", "gemm_large", 128, 128, (448,))),
    "gemm_f32 small": Kernels("gemm_f32", F32, 1, gemm("F32", "f32", "gemm_small", 16, 64, (160,))),
    "gemm_f32 medium": Kernels("gemm_f32", F32, 1, gemm("F32", "f32", "gemm_medium", 64, 64, (160,))),
    "flash_f16": Kernels("flash_f16", {}, 4, attention("flash_f16")),
    "flash_f32": Kernels("flash_f32", {}, 5, attention("flash_f32")),
    "attention_split": Kernels("attention_split", {"BATCH": "8"}, 2, split_attention),
    "prefill": Kernels("prefill", F32, 1, norms),
}


def noticed(device: Device, work: Work, expected: NDArray[np.float32]) -> bool:
    """Return whether some order of threads gives another result, or none."""
    for order in ORDERS:
        set_order(order)
        try:
            with bench(device) as it:
                if not np.array_equal(work(it), expected, equal_nan=True):
                    return True
        except EngineError:
            return True
    return False


@pytest.mark.parametrize("name", KERNELS)
def test_no_barrier_can_be_left_out(emulated: Device, name: str) -> None:
    source, defines, waits, work = KERNELS[name]
    with bench(emulated) as it:
        module = build(emulated, source, {**it.defines, **defines})
        expected = work(it)
    assert not np.isnan(expected).any()
    assert not noticed(emulated, work, expected)
    missed: list[Barrier] = []
    for barrier in barriers(module):
        remove_barrier(module, barrier.index)
        try:
            if not noticed(emulated, work, expected):
                missed.append(barrier)
        finally:
            remove_barrier(module, None)
    assert len(barriers(module)) - len(missed) == waits, missed


def test_every_barrier_of_a_module_is_one_that_some_kernel_needs(emulated: Device) -> None:
    """What `test_no_barrier_can_be_left_out` counts is all there is."""
    most: dict[str, int] = {}
    for each in KERNELS.values():
        most[each.source] = max(most.get(each.source, 0), each.waits)
    for each in KERNELS.values():
        with bench(emulated) as it:
            module = build(emulated, each.source, {**it.defines, **each.defines})
        assert len(barriers(module)) == most[each.source]
