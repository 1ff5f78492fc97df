"""Every place where the prefill's threads wait is needed: without it a comparison or a launch fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
from custom_cuda_prefill_parts import Bench, bench
from numpy.typing import NDArray
from test_custom_cuda_prefill_attention import Piece, case

from enginecmp import EngineError
from enginecmp_custom_cuda.compiling import build
from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.device.emulated import Barrier, barriers, remove_barrier, set_order, used_barriers
from enginecmp_custom_cuda.engine.gemm import Activation

ORDERS = ("forward", "reverse", 1, 2, 3)

Work = Callable[[Bench], NDArray[np.float32]]


@pytest.fixture(autouse=True)
def _orders(emulated: Device) -> Iterator[None]:
    yield
    set_order("forward")


def gemms(kind: str, activation: Activation, shapes: tuple[str, ...]) -> Work:
    """Return the work of a GEMM module: every kernel, more stages than fit in shared memory at once."""
    random = np.random.default_rng(0)
    x = random.standard_normal((70, 1024)).astype(np.float32)
    weights = random.standard_normal((140, 1024)).astype(np.float32)

    def work(it: Bench) -> NDArray[np.float32]:
        found = []
        for it.shape in shapes:
            for columns in (1024, 704):
                found.append(it.multiply(x[:, :columns], weights[:, :columns], kind, activation).ravel())
        return np.concatenate(found)

    return work


def attention(kernel: str) -> Work:
    """Return the work of an attention module: several pages, several runs."""
    made = case([Piece(0, 150, 5), Piece(1, 70, 2)], heads=2, kv_heads=1, head_dim=16, seed=1)

    def work(it: Bench) -> NDArray[np.float32]:
        return it.attend(kernel, made.q, made.pages, made.position, made.slot, 7).ravel()

    return work


def norms(it: Bench) -> NDArray[np.float32]:
    """Work of prefill.cu: every kernel with a barrier."""
    x = np.random.default_rng(2).standard_normal((3, 1056)).astype(np.float32) * np.float32([[1], [30], [0.1]])
    norm = np.ones(1056)
    found = [it.rows("norm_f32", x, np.float32, norm)[0], it.rows("norm_f16", x, np.float16, norm)[0]]
    found += [it.rows("norm_bf16", x, np.uint16, norm)[0], it.rows("norm_s8", x, np.int8, norm)[1]]
    return np.concatenate([each.astype(np.float32).ravel() for each in found])


MODULES: dict[str, tuple[str, dict[str, str], Work]] = {
    "gemm_mma": ("gemm_mma", {"WEIGHT": "WEIGHT_Q8_0"}, gemms("Q8_0", "s8", ("gemm_small", "gemm_medium", "gemm_large"))),
    "gemm_f32": ("gemm_f32", {"WEIGHT": "WEIGHT_F32"}, gemms("F32", "f32", ("gemm_small", "gemm_medium"))),
    "flash_f16": ("flash_f16", {}, attention("flash_f16")),
    "flash_f32": ("flash_f32", {}, attention("flash_f32")),
    "prefill": ("prefill", {"WEIGHT": "WEIGHT_F32"}, norms),
}
"""By name: source, defines besides the bench's, and work that comes by every barrier."""


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


@pytest.mark.parametrize("name", MODULES)
def test_no_barrier_can_be_left_out(emulated: Device, name: str) -> None:
    source, defines, work = MODULES[name]
    with bench(emulated) as it:
        module = build(emulated, source, {**it.defines, **defines})
        expected = work(it)
    assert not np.isnan(expected).any()
    assert not noticed(emulated, work, expected)
    assert used_barriers(module) == barriers(module)
    missed: list[Barrier] = []
    for barrier in barriers(module):
        remove_barrier(module, barrier.index)
        try:
            if not noticed(emulated, work, expected):
                missed.append(barrier)
        finally:
            with suppress(EngineError):
                remove_barrier(module, None)
    assert not missed
