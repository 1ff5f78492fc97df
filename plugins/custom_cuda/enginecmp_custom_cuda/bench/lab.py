"""Small models and arrays on a device, and how far two arrays are apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from enginecmp import ModelInfo
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES

from ..device import Device, Memory
from ..weights.kinds import encode
from ..weights.model import DeviceMatrix
from ..weights.packing import pack

EXACT_TOLERANCE = 1e-5
"""Of float32 sums against float64 ones, as a share of the whole vector's length."""

ROUNDED_TOLERANCE = 5e-3
"""Where activations are rounded to 8 bits: float32 and float64 may round one of them to different neighbours."""


def tiny_model(folder: Path, architecture: str, kind: str, seed: int = 0, **shape: Any) -> ModelInfo:
    """Write a tiny model of random weights, or return the one that is there.

    Args:
        folder: for the file.
        architecture: "llama", "qwen2" or "phi3".
        kind: of its matrices.
        seed: of its weights.
        shape: fields of `SynthShape` that are other than those of the tiny shape.
    """
    name = "-".join(["tiny", architecture, kind.lower(), *(f"{key}{shape[key]}" for key in sorted(shape)), str(seed)])
    SHAPES[name] = msgspec.structs.replace(SHAPES[f"tiny-{architecture}"], **shape)
    try:
        return write_synth(folder / f"{name}.gguf", like=name, quantization=kind, seed=seed)
    finally:
        del SHAPES[name]


class Lab:
    """Arrays on a device, freed together.

    Args:
        device: where.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self._memory: list[Memory] = []

    def room(self, nbytes: int) -> int:
        """Return the address of fresh memory."""
        self._memory.append(self.device.allocate(max(nbytes, 16), "a measurement"))
        return self._memory[-1].address

    def put(self, array: ArrayLike, dtype: DTypeLike) -> int:
        """Return the address of a copy of an array."""
        array = np.ascontiguousarray(array, dtype)
        address = self.room(array.nbytes)
        self.device.upload(address, array)
        return address

    def matrix(self, weights: NDArray[np.float32], kind: str) -> DeviceMatrix:
        """Return packed weights, (rows, columns), encoded as a kind."""
        rows, columns = weights.shape
        packed = pack(encode(weights, kind), kind, rows, columns)
        return DeviceMatrix(self.put(packed, np.uint8), rows, columns, kind, packed.nbytes)

    def repeat(self, pattern: NDArray[np.uint8], nbytes: int) -> int:
        """Return the address of fresh memory, filled with a pattern over and over."""
        address = self.room(nbytes)
        self.fill(address, pattern, nbytes)
        return address

    def fill(self, address: int, pattern: NDArray[np.uint8], nbytes: int) -> None:
        """Fill memory with a pattern over and over; each copy on the device doubles what is there."""
        done = min(pattern.nbytes, nbytes)
        self.device.upload(address, pattern.reshape(-1)[:done])
        while done < nbytes:
            more = min(done, nbytes - done)
            self.device.copy(address + done, address, more)
            done += more
        self.device.synchronize()

    def close(self) -> None:
        """Free everything."""
        self.device.synchronize()
        for memory in self._memory:
            memory.free()
        self._memory.clear()


def distance(found: ArrayLike, expected: ArrayLike) -> float:
    """Return the difference's length over that of what is expected; infinite where something is no number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    length = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / length if length else float(np.linalg.norm(found))


def mean_kl(reference: ArrayLike, logits: ArrayLike) -> float:
    """Return KL(reference || logits) in nats, averaged over positions, in float64; infinite for what is no number."""
    if not np.isfinite(np.asarray(logits)).all():
        return float("inf")
    p, q = (_log_softmax(np.asarray(each, np.float64)) for each in (reference, logits))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
