"""Write a GGUF file tensor by tensor: bounded memory, the same bytes every time, all or nothing on disk.

gguf-py's own writer builds every field anew; this one also takes fields as bytes, so a converter copies what it
does not change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec

from enginecmp.errors import ModelError
from enginecmp.models.ggml_types import GGML_TYPE_NUMBERS, GGML_TYPES
from enginecmp.models.gguf_header import DEFAULT_ALIGNMENT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Value type of a field: GGUF type number, struct code (empty for strings).
_FIELD_TYPES = {
    "UINT16": (2, "H"),
    "UINT32": (4, "I"),
    "INT32": (5, "i"),
    "FLOAT32": (6, "f"),
    "BOOL": (7, "B"),
    "STRING": (8, ""),
    "UINT64": (10, "Q"),
}
_ARRAY = 9


class TensorPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor to write.

    Attributes:
        name: as engines look it up.
        shape: row-major, outermost first.
        type: GGML type name of the result.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    def nbytes(self) -> int:
        """Return the size of the tensor's data."""
        _, block, block_bytes = GGML_TYPES[GGML_TYPE_NUMBERS[self.type]]
        weights = 1
        for extent in self.shape:
            weights *= extent
        return weights // block * block_bytes


def field(key: str, kind: str, value: Any) -> bytes:
    """Encode one metadata field; a list becomes an array of `kind`.

    Args:
        key: e.g. "llama.block_count".
        kind: "UINT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING" or "UINT64".
        value: one value or a list of them.
    """
    number, code = _FIELD_TYPES[kind]
    if isinstance(value, list):
        encoded = b"".join(map(_text, value)) if kind == "STRING" else struct.pack(f"<{len(value)}{code}", *value)
        return _text(key) + struct.pack("<IIQ", _ARRAY, number, len(value)) + encoded
    encoded = _text(value) if kind == "STRING" else struct.pack(f"<{code}", value)
    return _text(key) + struct.pack("<I", number) + encoded


def encode_weights(weights: NDArray[np.float32], kind: str) -> bytes:
    """Return float32 weights as the bytes of a GGML type.

    Args:
        weights: shape (rows..., row length), the row length a multiple of the type's block.
        kind: GGML type name, e.g. "Q8_0".

    Raises:
        ModelError: a weight is too large for the type.
    """
    import gguf
    import numpy as np

    with np.errstate(over="ignore"):
        encoded = gguf.quantize(weights, gguf.GGMLQuantizationType[kind])
    if kind == "F16" and not np.isfinite(encoded).all() and np.isfinite(weights).all():
        msg = "expected weights that fit F16, got one above 65504; use BF16 or F32"
        raise ModelError(msg)
    return bytes(encoded.tobytes())


def write_gguf(
    path: Path,
    fields: Sequence[bytes],
    plans: Sequence[TensorPlan],
    content: Callable[[TensorPlan], Iterable[bytes]],
    alignment: int = DEFAULT_ALIGNMENT,
) -> str:
    """Write a GGUF version 3 file and return its SHA-256.

    Args:
        path: where it appears once it is whole and on disk; a file already there is replaced.
        fields: encoded metadata, from `field` or copied from another file.
        plans: the tensors, in file order.
        content: gives a tensor's bytes, in pieces of any size; called once a tensor, in order.
        alignment: of tensor data; must agree with a "general.alignment" among the fields.

    Raises:
        ModelError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(plans), len(fields)))
    for encoded in fields:
        head += encoded
    offset = 0
    sizes = [plan.nbytes() for plan in plans]
    for plan, size in zip(plans, sizes, strict=True):
        # GGUF stores the innermost dimension first.
        dimensions = tuple(reversed(plan.shape))
        head += _text(plan.name)
        head += struct.pack(
            f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, GGML_TYPE_NUMBERS[plan.type], offset
        )
        offset += _padded(size, alignment)
    head += bytes(_padded(len(head), alignment) - len(head))

    digest = hashlib.sha256()
    with whole_file(path, len(head) + offset) as file:
        for piece in _pieces(bytes(head), plans, sizes, content, alignment):
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _pieces(
    head: bytes,
    plans: Sequence[TensorPlan],
    sizes: Sequence[int],
    content: Callable[[TensorPlan], Iterable[bytes]],
    alignment: int,
) -> Iterator[bytes]:
    """Yield the whole file in order."""
    yield head
    for plan, size in zip(plans, sizes, strict=True):
        written = 0
        for piece in content(plan):
            written += len(piece)
            yield piece
        assert written == size, f"tensor {plan.name}: planned {size} bytes, got {written}"
        yield bytes(_padded(size, alignment) - size)


@contextmanager
def whole_file(path: Path, n_bytes: int) -> Iterator[IO[bytes]]:
    """Open a file that appears at `path` only when it is whole and synced; on any error nothing is left.

    Args:
        path: the final place.
        n_bytes: how much will be written, to refuse a full disk before the work is done.

    Raises:
        ModelError: the disk is full or the folder cannot be written.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():  # the rename below would replace a device
            msg = f"{path}: expected the name of a file to write, got a folder, device or pipe"
            raise ModelError(msg)
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < n_bytes:
            msg = f"{path}: expected {n_bytes} bytes free on the disk, got {free}; free some or set ENGINECMP_CACHE"
            raise ModelError(msg)
        # In the same folder, so that the rename below is atomic.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        msg = f"{path}: expected to write the file, got: {error.strerror or error}"
        raise ModelError(msg) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, as `whole_file` writes one.

    Raises:
        ModelError: it cannot be read or written.
    """
    with open(source, "rb") as old, whole_file(target, source.stat().st_size) as new:
        shutil.copyfileobj(old, new, 1 << 20)


def _text(value: str) -> bytes:
    """Return a GGUF string: length, then UTF-8."""
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _padded(size: int, alignment: int) -> int:
    """Return the smallest multiple of the alignment that holds `size` bytes."""
    return -(-size // alignment) * alignment
