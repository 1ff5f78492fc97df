"""The plan of the persistent kernel for a loaded model on a device, and why there may be none."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from ...compiling import EMULATED
from ...weights.kinds import KINDS
from ..decode.step import ELEMENT_BYTES, DecodeSettings
from .faults import Fault
from .layout import Shape
from .schedule import Schedule, default_splits, generate
from .validate import check

if TYPE_CHECKING:
    from ...device import Device
    from ...weights.model import DeviceModel

BULK_CAPABILITY = (9, 0)
ASYNC_CAPABILITY = (8, 0)


def shape_of(model: DeviceModel, settings: DecodeSettings) -> Shape:
    """Return what a schedule has to know of a model."""
    config, kind = model.config, model.head.kind
    return Shape(
        layers=config.layers,
        hidden=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        inner=config.feed_forward,
        vocabulary=model.head.rows,
        kind=kind,
        quantized_activations=KINDS[kind].scaled and not settings.exact,
        kv_bytes=ELEMENT_BYTES[settings.kv],
    )


def ring_of(device: Device) -> str | None:
    """Return how weights get into the ring of a device: a define of the kernel; None: not at all."""
    if device.architecture == EMULATED or device.capability >= BULK_CAPABILITY:
        return "RING_BULK"
    return "RING_ASYNC" if device.capability >= ASYNC_CAPABILITY else None


def misfit(device: Device, model: DeviceModel, settings: DecodeSettings) -> str | None:
    """Return why a model cannot be decoded by the persistent kernel on a device; None where it can."""
    if reason := unsuited(device, model):
        return reason
    _, faults = plan_of(device, model, settings)
    return f"expected a plan that fits, got {faults[0]}" if faults else None


def unsuited(device: Device, model: DeviceModel) -> str | None:
    """Return what of the device or the model no plan could fix; None where there is nothing."""
    if ring_of(device) is None:
        return f"expected compute capability 8.0 or more, got {'.'.join(map(str, device.capability))}"
    matrices = {model.embedding.kind, model.head.kind}
    for layer in model.layers:
        matrices |= {layer.qkv.kind, layer.output.kind, layer.gate_up.kind, layer.down.kind}
    return f"expected matrices of one kind, got {', '.join(sorted(matrices))}" if len(matrices) > 1 else None


def plan_of(
    device: Device,
    model: DeviceModel,
    settings: DecodeSettings,
    *,
    multiprocessors: int | None = None,
    splits: int | None = None,
    slots: int | None = None,
) -> tuple[Schedule, tuple[Fault, ...]]:
    """Return the plan for a model on a device, and its faults; arguments as of `PersistentDecoder`."""
    shape = shape_of(model, settings)
    multiprocessors = multiprocessors or device.multiprocessors
    bases = tuple((of.qkv.address, of.output.address, of.gate_up.address, of.down.address) for of in model.layers)
    splits = splits or default_splits(shape, multiprocessors, settings.positions)
    return _proved(shape, multiprocessors, device.shared_bytes, bases, model.head.address, splits, slots)


@functools.lru_cache(maxsize=4)  # the proof takes a second on a device of 132 multiprocessors
def _proved(
    shape: Shape,
    multiprocessors: int,
    shared_bytes: int,
    bases: tuple[tuple[int, ...], ...],
    head: int,
    splits: int,
    slots: int | None,
) -> tuple[Schedule, tuple[Fault, ...]]:
    addresses = np.array(bases, np.int64)  # (layers, 4)
    schedule = generate(shape, multiprocessors, shared_bytes, addresses, head, splits=splits, slots=slots)
    return schedule, tuple(check(schedule))
