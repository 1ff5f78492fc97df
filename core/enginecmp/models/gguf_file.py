"""Read a GGUF model's header strictly, before any native engine opens its file, or files where it is split.

Every count, length and offset is held against the file's size, so a malformed, truncated or hostile file ends
in one `ModelError` here and not in an engine's crash. The reading itself is in `gguf_header`.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.models.gguf_header import MAX_HEADER_BYTES, Header, HeaderParser, TensorInfo, malformed, short
from enginecmp.models.gguf_kind import companion_of
from enginecmp.models.gguf_split import joined, part_paths
from enginecmp.models.paths import require_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["GGUFFile", "TensorInfo", "read_gguf"]

_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class GGUFFile(msgspec.Struct, frozen=True, kw_only=True):
    """A checked GGUF model of one file or several.

    Attributes:
        path: where it is; of a split model, its first part.
        metadata: key-value pairs; arrays are lists.
        tensors: by name, in file order.
        alignment: of tensor data, in bytes.
        bytes: size of the file, or of all parts together.
        spans: for every metadata key the first and the past-the-end byte of its encoding in `path` (key included),
            so that a converter can copy it faithfully.
        parts: the files in order, where the model is split; else empty.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    alignment: int
    bytes: int
    spans: Mapping[str, tuple[int, int]] = {}
    parts: tuple[Path, ...] = ()

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return a tensor's bytes as they are in the file, memory-mapped, shape (rows..., bytes per row)."""
        import numpy as np

        tensor = self._tensor(name)
        rows = tensor.shape[:-1]
        row_bytes = tensor.nbytes
        for extent in rows:
            row_bytes //= extent
        path = self.parts[tensor.part] if self.parts else self.path
        return np.memmap(path, dtype=np.uint8, mode="r", offset=tensor.offset, shape=(*rows, row_bytes))

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
            msg = f"{self.path}: expected tensor '{name}' in a type that can be dequantized, got {tensor.type}"
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
    """Check a GGUF model's whole header and return it; a split model is named by its first part and read as one.

    Raises:
        ModelError: a file is missing, truncated, malformed or hostile, or is no model but goes with one.
    """
    path = Path(path)
    header, n_bytes = _read(path)
    paths = part_paths(path, header.metadata)
    tensors = header.tensors
    if len(paths) > 1:
        others = [_read(part) for part in paths[1:]]
        tensors = joined(path, paths, [header, *(another for another, _ in others)])
        n_bytes += sum(part_bytes for _, part_bytes in others)
    if companion := companion_of(header.metadata, tensors):
        msg = f"{path}: expected a model, got {companion}; name the model that it goes with"
        raise ModelError(msg)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise malformed(path, f"expected a name in 'general.architecture', got {short(architecture)}")
    return GGUFFile(
        path=path,
        metadata=header.metadata,
        tensors=tensors,
        alignment=header.alignment,
        bytes=n_bytes,
        spans=header.spans,
        parts=tuple(paths) if len(paths) > 1 else (),
    )


def _read(path: Path) -> tuple[Header, int]:
    """Return one file's header and size."""
    n_bytes = require_regular(path)
    if n_bytes < 24:
        msg = f"{path}: expected a GGUF header of at least 24 bytes, the file has {n_bytes}"
        raise ModelError(msg)
    try:
        mapped = min(n_bytes, MAX_HEADER_BYTES)
        with path.open("rb") as file, mmap.mmap(file.fileno(), mapped, access=mmap.ACCESS_READ) as content:
            return HeaderParser(path, content, n_bytes).parse(), n_bytes
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        msg = f"{path}: expected a readable GGUF file, got: {reason or error}"
        raise ModelError(msg) from error
