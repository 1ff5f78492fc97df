"""Safetensors files, read strictly and written tensor by tensor.

Format: 8 bytes with the header's length, little endian; the header, a JSON object of tensor name to dtype, shape and
`data_offsets` counted from the header's end; the data without gaps (huggingface/safetensors, README.md, "Format").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from enginecmp.format.text import plain
from enginecmp.models.gguf_kind import format_of
from enginecmp.models.gguf_write import whole_file
from enginecmp.models.huggingface.refusal import refuse
from enginecmp.models.paths import require_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_HEADER_BYTES = 2**25
"""A model of 65,536 tensors takes a third."""

MAX_TENSORS = 65_536
MAX_NAME_CHARACTERS = 512
MAX_DIMENSIONS = 8

DTYPE_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}

_METADATA = "__metadata__"
_Extent = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class SafeTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor as a header describes it.

    Attributes:
        name: e.g. "model.layers.0.self_attn.q_proj.weight".
        dtype: key of `DTYPE_BYTES`.
        shape: row-major, outermost first.
        path: the file that holds it.
        offset: its first byte there.
        nbytes: its size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def raw(self) -> NDArray[np.uint8]:
        """Return its bytes, memory-mapped, shape (nbytes,)."""
        import numpy as np

        return np.memmap(self.path, dtype=np.uint8, mode="r", offset=self.offset, shape=(self.nbytes,))


class _Entry(msgspec.Struct):
    """A tensor in the header."""

    dtype: str
    shape: list[_Extent]
    data_offsets: tuple[_Extent, _Extent]


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """Return the tensors of one file by name, every number held against the bytes that are there.

    Raises:
        ModelError: it is missing, truncated, malformed or hostile.
    """
    n_bytes = require_regular(path, "safetensors")
    try:
        with path.open("rb") as file:
            start = file.read(24)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 10 or start[8:9] != b"{" or not 2 <= length <= n_bytes - 8:
                refuse(path, f"a header within its {n_bytes} bytes", format_of(start) or "other bytes")
            if length > MAX_HEADER_BYTES:
                refuse(path, f"a header of at most {MAX_HEADER_BYTES} bytes", f"one of {length}")
            file.seek(8)
            header = file.read(length)
    except OSError as error:
        refuse(path, "a readable safetensors file", error.strerror or str(error))
    entries = _entries(path, header)
    tensors = [_checked(path, name, entry, 8 + length, n_bytes) for name, entry in entries.items()]
    end = 8 + length
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            refuse(path, f"tensor '{plain(tensor.name)}' right after the one before it", "a gap or an overlap")
        end += tensor.nbytes
    if end != n_bytes:
        refuse(path, f"{end} bytes by its header", f"a file of {n_bytes}; it is cut short or has more; fetch it again")
    return {tensor.name: tensor for tensor in tensors}


def _entries(path: Path, header: bytes) -> dict[str, _Entry]:
    """Return the header's tensors, types checked, the free-form metadata left out."""
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop(_METADATA, None)
        if len(raw) > MAX_TENSORS:
            refuse(path, f"at most {MAX_TENSORS} tensors", f"{len(raw)}")
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        refuse(path, "a header of tensors in JSON", plain(str(error)))


def _checked(path: Path, name: str, entry: _Entry, data_start: int, n_bytes: int) -> SafeTensor:
    """Return one tensor, its shape, type and place held against each other and the file."""
    shown = plain(name)
    if not name or len(name) > MAX_NAME_CHARACTERS:
        refuse(path, f"tensor names of 1 to {MAX_NAME_CHARACTERS} characters", f"one of {len(name)}")
    if entry.dtype not in DTYPE_BYTES:
        refuse(path, f"a known type of tensor '{shown}'", f"'{plain(entry.dtype, 40)}'")
    if len(entry.shape) > MAX_DIMENSIONS:
        refuse(path, f"at most {MAX_DIMENSIONS} dimensions of tensor '{shown}'", f"{len(entry.shape)}")
    begin, end = entry.data_offsets
    wanted = math.prod(entry.shape) * DTYPE_BYTES[entry.dtype]
    if end - begin != wanted or data_start + end > n_bytes:
        got = f"bytes {begin} to {end} of {n_bytes - data_start}"
        refuse(path, f"{wanted} bytes inside the file for tensor '{shown}'", got)
    return SafeTensor(
        name=name, dtype=entry.dtype, shape=tuple(entry.shape), path=path, offset=data_start + begin, nbytes=wanted
    )


class TensorToWrite(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a file to write: its name, type, shape, and what gives its bytes in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], Iterable[bytes]]

    def nbytes(self) -> int:
        """Return the size of its data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def write_safetensors(path: Path, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write one file; the same tensors give the same bytes.

    Args:
        path: where it appears once it is whole and on disk.
        tensors: in any order; wide types come first in the file, as readers that map it want them aligned.
        metadata: free-form, of texts.

    Raises:
        ModelError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    ordered = sorted(tensors, key=lambda tensor: (-DTYPE_BYTES[tensor.dtype], tensor.name))
    header: dict[str, object] = {_METADATA: dict(metadata)}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.nbytes()
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (offset, end)}
        offset = end
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with whole_file(path, 8 + len(encoded) + offset) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for tensor in ordered:
            written = sum(file.write(piece) for piece in tensor.content())
            assert written == tensor.nbytes(), f"{tensor.name}: planned {tensor.nbytes()} bytes, got {written}"
