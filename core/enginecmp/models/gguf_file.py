"""Read a GGUF file's header strictly, before any native engine opens the file.

Every count, length and offset is held against the file's size, so a malformed, truncated or hostile file ends
in one `ModelError` here and not in an engine's crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor as the header describes it.

    Attributes:
        name: e.g. "blk.0.attn_q.weight".
        shape: row-major, outermost first, in weights (not in blocks), e.g. (576, 576).
        type: GGML type name, e.g. "Q8_0".
        offset: first byte, counted from the start of the file.
        nbytes: size in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUFFile(msgspec.Struct, frozen=True, kw_only=True):
    """A checked GGUF file.

    Attributes:
        path: where it is.
        metadata: key-value pairs; arrays are lists.
        tensors: by name, in file order.
        alignment: of tensor data, in bytes.
        bytes: size of the file.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    bytes: int

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as they are in the file, memory-mapped, shape (rows..., bytes per row)."""
        raise NotImplementedError

    def float32(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantized to float32, in its row-major shape."""
        raise NotImplementedError


def read_gguf(path: Path | str) -> GGUFFile:
    """Check a GGUF file's whole header and return it.

    Raises:
        ModelError: the file is missing, truncated, malformed or hostile.
    """
    raise NotImplementedError
