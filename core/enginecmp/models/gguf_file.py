"""Read a GGUF file's header strictly, before any native engine opens the file.

Every count, length and offset is held against the file's size, so a malformed, truncated or hostile file ends
in one `ModelError` here and not in an engine's crash. The reading itself is in `gguf_header`.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.models.gguf_header import HeaderParser, TensorInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGUFFile", "TensorInfo", "read_gguf"]


class GGUFFile(msgspec.Struct, frozen=True, kw_only=True):
    """A checked GGUF file.

    Attributes:
        path: where it is.
        metadata: key-value pairs; arrays are lists.
        tensors: by name, in file order.
        alignment: of tensor data, in bytes.
        bytes: size of the file.
        spans: for every metadata key the first and the past-the-end byte of its encoding (key included), so
            that a converter can copy it faithfully.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    bytes: int
    spans: Mapping[str, tuple[int, int]] = {}

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as they are in the file, memory-mapped, shape (rows..., bytes per row)."""
        import numpy as np

        tensor = self._tensor(name)
        rows = tensor.shape[:-1]
        row_bytes = tensor.nbytes
        for extent in rows:
            row_bytes //= extent
        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(*rows, row_bytes))

    def float32(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantized to float32, in its row-major shape; the array is the caller's to write.

        Raises:
            ModelError: a type that holds no weights, or that cannot be dequantized here.
        """
        import gguf
        import numpy as np

        tensor = self._tensor(name)
        try:
            # np.array copies: an F32 tensor would otherwise be a read-only view of the file.
            weights = np.array(gguf.dequantize(self.raw(name), gguf.GGMLQuantizationType[tensor.type]))
        except NotImplementedError as error:
            msg = f"{self.path}: tensor '{name}' should have a type that can be dequantized, came {tensor.type}"
            raise ModelError(msg) from error
        return weights.astype(np.float32, copy=False).reshape(tensor.shape)

    def _tensor(self, name: str) -> TensorInfo:
        """Return one tensor's description, or raise one line."""
        try:
            return self.tensors[name]
        except KeyError:
            msg = f"{self.path}: expected a tensor '{name}', the file has none of that name"
            raise ModelError(msg) from None


def read_gguf(path: Path | str) -> GGUFFile:
    """Check a GGUF file's whole header and return it.

    Raises:
        ModelError: the file is missing, truncated, malformed or hostile.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would block for ever
            msg = f"{path}: expected a GGUF file, came something that is not a regular file"
            raise ModelError(msg)
        if status.st_size < 24:
            msg = f"{path}: expected a GGUF header of at least 24 bytes, the file has {status.st_size}"
            raise ModelError(msg)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = HeaderParser(path, content).parse()
            return GGUFFile(path=path, bytes=len(content), **header._asdict())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"{path}: expected a readable GGUF file, came: {reason or error}"
        raise ModelError(msg) from error
