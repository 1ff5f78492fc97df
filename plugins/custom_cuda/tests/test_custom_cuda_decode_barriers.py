"""Every place where the decode kernels wait is needed: without it some order of the threads computes something else."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import custom_cuda_controls as control
import numpy as np
import pytest
from custom_cuda_decode import CHOICES, Choice, Paged, Rig, warm

from enginecmp import EngineError
from enginecmp_custom_cuda.device import Device, Module, build
from enginecmp_custom_cuda.engine.decode.step import defines
from enginecmp_custom_cuda.engine.memory import params

ORDERS = ("forward", "reverse", 1, 2, 3)
HIDDEN, INNER, ROWS, EPSILON = 96, 64, 40, 1e-5


CHOSEN = (*CHOICES[:2], CHOICES[3])
"""One sequence, two that share a warp's rows, four with a head that is not a power of two long."""


@pytest.fixture(scope="module", params=CHOSEN, ids=["-".join(map(str, choice)) for choice in CHOSEN])
def choice(request: pytest.FixtureRequest, emulated: Device) -> Choice:
    warm(emulated)
    found: Choice = request.param
    return found


@pytest.fixture
def module(emulated: Device, choice: Choice) -> Iterator[Module]:
    module = build(emulated, "decode", defines(*choice))
    yield module
    control.remove_barrier(module, None)
    control.reset()


def everything(device: Device, choice: Choice, split_k: int) -> bytes:
    """Run a chain of all kernels, each launched early behind the one before; return what they leave.

    Two layers on the same weights, so that every buffer is read and written again by a later launch. A block has
    several rounds of rows.
    """
    with Rig(device, choice) as rig:
        d, batch = choice.head_dim, choice.batch
        kv_heads, heads = 1, 96 // d or 1
        if heads * d % 32:
            heads += 1
        positions = np.full(batch, 70, np.int32)
        paged = Paged(rig, kv_heads, positions + 64)
        for slot in range(batch):
            paged.fill(slot, 70)
        cache, position = paged.upload(), rig.put(positions)
        x, q, h = rig.put(rig.normal(batch, HIDDEN)), rig.nans(batch, heads, d), rig.nans(batch, INNER)
        partial, ml = rig.nans(batch, heads, 2, d), rig.nans(batch, heads, 2, 2)
        norm, rope = rig.put(rig.normal(HIDDEN)), rig.put(rig.normal(72, d // 2, 2))
        best, logits = rig.put(np.zeros(batch, np.uint64)), rig.nans(batch, ROWS)
        token, count = rig.put(np.zeros(batch, np.int32)), rig.put(np.zeros(batch, np.int32))
        ring = rig.put(np.full((4, batch), -1, np.int32))
        matrices = {
            "qkv": rig.matrix((heads + 2 * kv_heads) * d, HIDDEN),
            "output": rig.matrix(HIDDEN, heads * d),
            "gate_up": rig.matrix(2 * INNER, HIDDEN),
            "down": rig.matrix(HIDDEN, INNER),
            "head": rig.matrix(ROWS, HIDDEN),
        }
        w = {name: matrix.on_device for name, matrix in matrices.items()}
        split = {"heads": heads, "splits": 2}
        shared = {"x": x, "position": position}
        normed = {**shared, "norm": norm, "epsilon": EPSILON}
        sums = {"partial": partial, "partial_ml": ml}
        layer = {
            "qkv": params.Qkv(w=w["qkv"], rope=rope, q=q, cache=cache, heads=heads, rope_dims=d, **normed),
            "attention": params.Attention(q=q, cache=cache, position=position, **sums, **split),
            "output": params.Output(w=w["output"], **shared, **sums, **split),
            "gate_up": params.GateUp(w=w["gate_up"], h=h, **normed),
            "down": params.Down(w=w["down"], h=h, **shared),
        }
        ending = {
            "head": params.Head(w=w["head"], logits=logits, best=best, **normed),
            "next": params.Next(
                table=w["head"], active=position, best=best, token=token, count=count, ring=ring, ring_slots=4,
                ring_stride=batch, **shared,
            ),
        }  # fmt: skip
        begin = params.Begin(position=position, active=token, count=count, best=best, slot=0, at=70, token=-1)
        tile = 4 if d != 96 else 1
        for name, arguments in [("begin", begin)] + [*layer.items(), *layer.items(), *ending.items()] * 2:
            if name in w:
                rig.multiply(name, arguments, split_k, 2, overlap=True)
            else:
                grid: dict[str, int | tuple[int, int, int]] = {
                    "attention": (2, kv_heads, batch * -(-heads // kv_heads // tile)),
                    "next": batch,
                    "begin": 1,
                }
                rig.launch(name, grid[name], arguments, block=32 if name == "begin" else 256, overlap=True)
        device.synchronize()
        results = [rig.get(x, (batch, HIDDEN)), paged.download(), rig.get(logits, (batch, ROWS))]
        results += [rig.get(h, (batch, INNER)), rig.get(best, batch, np.uint64)]
        results += [rig.get(each, batch, np.int32) for each in (token, position, count)]
        return b"".join(each.tobytes() for each in results)


@functools.cache
def standing(device: Device, choice: Choice, split_k: int) -> bytes:
    """Return what the kernels leave with all barriers in place."""
    return everything(device, choice, split_k)


def observed(device: Device, choice: Choice, split_k: int, order: str | int) -> bytes | str:
    """Return what a run in one order leaves, or the driver's word for how it ended."""
    control.set_order(order)  # type: ignore[arg-type]
    try:
        return everything(device, choice, split_k)
    except EngineError as error:
        return str(error)


@pytest.mark.parametrize("split_k", [1, 2, 8])
def test_every_order_of_threads_computes_the_same_bits(
    emulated: Device, choice: Choice, module: Module, split_k: int
) -> None:
    expected = standing(emulated, choice, split_k)
    for order in ORDERS:
        found = observed(emulated, choice, split_k, order)
        assert not isinstance(found, str), f"order {order}: {found} {control.why_lost()}"
        assert found == expected, f"order {order}"


def test_every_barrier_is_needed(emulated: Device, choice: Choice, module: Module) -> None:
    for split_k in (1, 2):
        standing(emulated, choice, split_k)
    places = control.barriers(module)
    assert len(places) >= 10, "a few in every kernel"
    assert control.used_barriers(module) == places, "the runs above reach all of them"
    needless = []
    for place in places:
        control.remove_barrier(module, place.index)
        noticed = any(
            observed(emulated, choice, split_k, order) != standing(emulated, choice, split_k)
            for split_k in (2, 1)
            for order in ORDERS
        )
        if not noticed:
            needless.append(f"{place.file.rsplit('/', 1)[-1]}:{place.line} {place.kind}")
        control.remove_barrier(module, None)
    assert needless == []
