"""packing.cuh finds every weight where packing.py has put it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from enginecmp_custom_cuda.device import Device, build
from enginecmp_custom_cuda.weights.kinds import KINDS, decode, encode
from enginecmp_custom_cuda.weights.packing import pack

SOURCE = Path(__file__).parent / "data" / "custom_cuda_packing.cu"
SHAPES = ((1, 32), (16, 512), (37, 544), (33, 1120))


class Read(ctypes.Structure):
    """Mirror of ReadParams in data/custom_cuda_packing.cu."""

    _fields_ = (
        ("tiles", ctypes.c_uint64),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("weights", ctypes.c_uint64),
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_weight_is_where_the_kernels_look(device: Device, kind: str) -> None:
    kernel = build(device, SOURCE, {"WEIGHT": f"WEIGHT_{kind}"}).kernel("read_all")
    for rows, columns in SHAPES:
        raw = encode(np.random.default_rng(rows).standard_normal((rows, columns), np.float32), kind)
        packed = pack(raw, kind, rows, columns)
        matrix, weights = device.allocate(packed.nbytes, "matrix"), device.allocate(4 * rows * columns, "weights")
        device.upload(matrix.address, packed)
        device.launch(kernel, 2, 64, 0, Read(matrix.address, rows, columns, weights.address))
        assert (device.download(weights.address, (rows, columns), np.float32) == decode(raw, kind)).all()
        matrix.free()
        weights.free()
