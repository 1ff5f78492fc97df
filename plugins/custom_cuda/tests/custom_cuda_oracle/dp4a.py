"""What kernels compute with ACTIVATION_Q8: whole-number dots of blocks of 32, exact, and weighted sums in float64.

An activation is rounded to int8 with one float32 scale for every 32 values, as GGML's block_q8_1 does. The dot of a
block with quantized weights is then a whole number, which every right kernel finds exactly. Only the sum over blocks
depends on the order, so it is kept in float64 here and kernels are held to it within float32's rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp_custom_cuda.config import BLOCK
from enginecmp_custom_cuda.weights.kinds import KINDS, decode, quants

from . import reference


class Quantized(NamedTuple):
    """Activations as int8.

    Attributes:
        values: whole numbers in -127..127, shape (..., columns).
        scales: shape (..., columns / 32).
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]


class Product(NamedTuple):
    """A matrix times quantized activations.

    Attributes:
        dots: of every block of 32, exact, shape (..., rows, columns / 32).
        terms: float32(dot) * (weight scale * activation scale), each product rounded to float32, the same shape.
        sums: of the terms, in float64, shape (..., rows).
    """

    dots: NDArray[np.int32]
    terms: NDArray[np.float32]
    sums: NDArray[np.float64]


def quantize(x: ArrayLike) -> Quantized:
    """Round activations as the kernels do, to the bit.

    Every operation is one float32 operation: scale = amax / 127, value = rint(x * (127 / amax)), ties to even.

    Args:
        x: shape (..., columns), finite, columns a multiple of 32; rounded to float32 first.
    """
    values = np.asarray(x, np.float32)
    blocks = values.reshape(*values.shape[:-1], -1, BLOCK)  # (..., blocks, 32)
    largest = np.abs(blocks).max(axis=-1)  # (..., blocks)
    # A block of almost nothing (below 4e-37) overflows to infinity here and saturates on the device; its scale makes
    # nothing of it either way.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        factors = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
        rounded = np.rint(blocks * factors[..., None])
    rounded = np.clip(np.nan_to_num(rounded, nan=0.0), -127, 127)
    return Quantized(rounded.astype(np.int8).reshape(values.shape), largest / np.float32(127))


def multiply(activations: Quantized, raw: NDArray[np.uint8], kind: str) -> Product:
    """Multiply a matrix with activations.

    Args:
        activations: shape (..., columns).
        raw: the matrix as a file has it, shape (rows, row bytes).
        kind: "Q8_0" or "Q4_0".
    """
    values, weight_scales = quants(raw, kind)
    weights = values.reshape(len(values), -1, BLOCK).astype(np.int32)  # (rows, blocks, 32)
    inputs = activations.values.reshape(*activations.values.shape[:-1], -1, BLOCK).astype(np.int32)
    dots = np.einsum("...bi,rbi->...rb", inputs, weights, dtype=np.int32)  # (..., rows, blocks)
    scales = weight_scales.astype(np.float32) * activations.scales[..., None, :]
    terms = dots.astype(np.float32) * scales  # a dot is below 2**24, so it is a float32 as it stands
    return Product(dots, terms, terms.sum(axis=-1, dtype=np.float64))


def linear(x: NDArray[np.float64], raw: NDArray[np.uint8], kind: str) -> NDArray[np.float64]:
    """Multiply as a kernel with ACTIVATION_Q8 does where weights have scales, exactly where not: (..., rows).

    To be handed to `reference.forward`.
    """
    if KINDS[kind].scaled:
        return multiply(quantize(x), raw, kind).sums
    return reference.linear(x, decode(raw, kind))
