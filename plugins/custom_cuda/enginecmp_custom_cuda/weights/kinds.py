"""The kinds of weights that the kernels read: their bytes in a GGUF file, and the numbers that these mean.

Rows are arrays of bytes, shape (rows, `Kind.row_bytes`), as `GGUFFile.raw` hands them out. Block layouts: GGML's
`block_q8_0` (float16 scale, 32 int8) and `block_q4_0` (float16 scale, 16 bytes: element j in the low and element
j + 16 in the high half of byte j, 8 more than its value).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..config import BLOCK

SCALE_BYTES = 2


@dataclass(frozen=True)
class Kind:
    """One kind of weights.

    Attributes:
        name: of the GGML type.
        payload_bytes: that the weights of a block of 32 take, its scale apart.
        scaled: a float16 scale belongs to every block.
    """

    name: str
    payload_bytes: int
    scaled: bool

    @property
    def block_bytes(self) -> int:
        """Bytes of 32 weights in a row, scale included."""
        return self.payload_bytes + (SCALE_BYTES if self.scaled else 0)

    def row_bytes(self, columns: int) -> int:
        """Return the bytes of a row of `columns` weights in a file."""
        return columns // BLOCK * self.block_bytes


KINDS = {
    kind.name: kind
    for kind in (
        Kind("F32", 128, False),
        Kind("F16", 64, False),
        Kind("BF16", 64, False),
        Kind("Q8_0", 32, True),
        Kind("Q4_0", 16, True),
    )
}
"""By the name of the GGML type."""


def encode(weights: NDArray[np.float32], kind: str) -> NDArray[np.uint8]:
    """Return float32 weights as the rows of a file.

    Args:
        weights: shape (rows, columns), columns a multiple of 32.
        kind: a name from `KINDS`.

    Returns:
        Bytes, shape (rows, row bytes). Rounding is gguf-py's.
    """
    import gguf

    encoded = gguf.quantize(np.ascontiguousarray(weights), gguf.GGMLQuantizationType[kind])
    return np.ascontiguousarray(encoded).view(np.uint8).reshape(len(weights), -1)


def decode(raw: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Return the numbers that a file's rows mean, exactly, as float32.

    Args:
        raw: bytes, shape (rows, row bytes).
        kind: a name from `KINDS`.

    Returns:
        Shape (rows, columns).
    """
    raw = np.ascontiguousarray(raw)
    match kind:
        case "F32":
            return raw.view(np.float32).copy()
        case "F16":
            return raw.view(np.float16).astype(np.float32)
        case "BF16":
            return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case _:
            values, scales = quants(raw, kind)
            blocks = values.reshape(len(raw), -1, BLOCK).astype(np.float32)  # (rows, blocks, 32)
            # int8 times float16 has at most 19 significant bits: the product is exact.
            return (blocks * scales.astype(np.float32)[..., None]).reshape(values.shape)


def quants(raw: NDArray[np.uint8], kind: str) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return the whole numbers and the scales of quantized rows.

    Args:
        raw: bytes, shape (rows, row bytes).
        kind: "Q8_0" or "Q4_0".

    Returns:
        Values, shape (rows, columns), in -128..127 or -8..7; scales, shape (rows, columns / 32).
    """
    assert KINDS[kind].scaled, f"{kind} has no quants"
    blocks = np.ascontiguousarray(raw).reshape(len(raw), -1, KINDS[kind].block_bytes)
    scales = np.ascontiguousarray(blocks[..., :SCALE_BYTES]).view(np.float16)[..., 0]  # (rows, blocks)
    payload = blocks[..., SCALE_BYTES:]
    if kind == "Q8_0":
        values = np.ascontiguousarray(payload).view(np.int8)
    else:
        values = np.concatenate((payload & 15, payload >> 4), axis=-1).astype(np.int8) - np.int8(8)
    return values.reshape(len(raw), -1), scales
