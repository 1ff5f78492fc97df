"""The strict reading of a GGUF header: every count, length and offset against the bytes that are there.

Nothing is allocated or looped over on the word of a count alone. Format: the GGUF specification, versions 2
and 3 (ggml/docs/gguf.md), little endian.
"""

from __future__ import annotations

import mmap
import reprlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import msgspec

from enginecmp.errors import ModelError
from enginecmp.format.text import plain
from enginecmp.models.ggml_types import GGML_TYPES
from enginecmp.models.gguf_kind import format_of

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

# Limits far above any real model (the largest known vocabulary has 0.3 million tokens, the largest known
# mixture a few thousand tensors) and far below what hurts the host.
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
MAX_KEY_BYTES = 65_535  # the specification's own limit
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME less its terminating zero
MAX_STRING_BYTES = 16 * 2**20
MAX_ARRAY_ITEMS = 2**22  # over all arrays of the file
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 2**14  # over all arrays of the file; no known model has one
MAX_HEADER_BYTES = 2**27  # a tokenizer of 260,000 tokens takes 2**24
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20
MAX_WEIGHTS = 2**63 - 1  # ggml counts in int64

# Smallest encodings, to hold counts against the bytes that are left.
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8

# GGUF value type number: name, struct code.
_SCALARS = {
    0: ("UINT8", "B"),
    1: ("INT8", "b"),
    2: ("UINT16", "H"),
    3: ("INT16", "h"),
    4: ("UINT32", "I"),
    5: ("INT32", "i"),
    6: ("FLOAT32", "f"),
    7: ("BOOL", "B"),
    10: ("UINT64", "Q"),
    11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor as the header describes it.

    Attributes:
        name: e.g. "blk.0.attn_q.weight".
        shape: row-major, outermost first, in weights (not in blocks), e.g. (576, 576).
        type: GGML type name, e.g. "Q8_0".
        offset: first byte, counted from the start of its file.
        nbytes: size in bytes.
        part: index of its file among `GGUFFile.parts`; 0 where the model is one file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int
    part: int = 0


class Header(NamedTuple):
    """What a header says: see `gguf_file.GGUFFile`."""

    metadata: Mapping[str, Any]
    spans: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, TensorInfo]
    alignment: int


class HeaderParser:
    """A cursor over a GGUF header; every read is bounded by what there is.

    Args:
        path: of the file, for errors.
        content: its beginning, `MAX_HEADER_BYTES` or all of it.
        file_bytes: its size.
    """

    def __init__(self, path: Path, content: mmap.mmap, file_bytes: int) -> None:
        self.path = path
        self.content = content
        self.size = len(content)
        self.file_bytes = file_bytes
        self.position = 0
        self.items = 0
        self.arrays = 0

    def parse(self) -> Header:
        """Return the checked header.

        Raises:
            ModelError: the header is malformed, or the file too short for it.
        """
        if self.content[:4] != b"GGUF":
            other = format_of(self.content[:24])
            self.fail("expected the magic bytes 'GGUF'", f"got {self.content[:4]!r}{other and f': {other}'}")
        self.position = 4
        self.version()
        n_tensors, n_keys = self.u64("tensor count"), self.u64("metadata count")
        self.bound("tensors", n_tensors, MAX_TENSORS, _LEAST_TENSOR_BYTES)
        self.bound("metadata keys", n_keys, MAX_KEYS, _LEAST_KEY_BYTES)

        metadata: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(n_keys):
            start = self.position
            key = self.string("metadata key", MAX_KEY_BYTES)
            if not key:
                self.fail("expected a metadata key", "got an empty one")
            if key in metadata:
                self.fail("expected every metadata key once", f"got '{key}' twice")
            metadata[key] = self.value(key, self.u32(f"type of '{key}'"), depth=0)
            spans[key] = (start, self.position)

        alignment = self.alignment(metadata)
        tensors = self.tensors(n_tensors, alignment)
        return Header(metadata, spans, tensors, alignment)

    def version(self) -> None:
        """Refuse versions that are not 2 or 3, and the other byte order."""
        version = self.u32("version")
        if version in VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            self.fail("expected a little-endian GGUF", "got a big-endian one")
        self.fail("expected GGUF version 2 or 3", f"got version {version}")

    def alignment(self, metadata: Mapping[str, Any]) -> int:
        """Return the alignment of tensor data."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        # The specification: a multiple of 8; ggml: a power of two.
        valid = type(alignment) is int and 8 <= alignment <= MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        if not valid:
            self.fail(
                f"expected a power of two from 8 to {MAX_ALIGNMENT} in 'general.alignment'", f"got {short(alignment)}"
            )
        return int(alignment)

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """Return the tensor descriptions, each inside the file and none over another."""
        described = {}
        for _ in range(count):
            name, dimensions, type_number, offset = self.tensor()
            if name in described:
                self.fail("expected every tensor name once", f"got '{name}' twice")
            if type_number not in GGML_TYPES:
                self.fail(f"expected a known type for tensor '{name}'", f"got type {type_number}")
            type_name, block, block_bytes = GGML_TYPES[type_number]
            if dimensions[0] % block:
                self.fail(
                    f"expected rows of tensor '{name}' to be whole {type_name} blocks of {block}",
                    f"got {dimensions[0]} weights a row",
                )
            weights = 1
            for extent in dimensions:
                weights *= extent
            if weights > MAX_WEIGHTS:
                self.fail(f"expected tensor '{name}' to hold at most {MAX_WEIGHTS} weights", f"got {dimensions}")
            if offset % alignment:
                self.fail(f"expected tensor '{name}' at a multiple of {alignment}", f"got offset {offset}")
            described[name] = TensorInfo(
                name=name,
                shape=tuple(reversed(dimensions)),
                type=type_name,
                offset=offset,
                nbytes=weights // block * block_bytes,
            )
        start = -(-self.position // alignment) * alignment
        tensors = {
            name: msgspec.structs.replace(tensor, offset=start + tensor.offset) for name, tensor in described.items()
        }
        self.layout(tensors)
        return tensors

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return one tensor's name, dimensions (innermost first, as stored), type number and offset."""
        name = self.string("tensor name", MAX_TENSOR_NAME_BYTES)
        if not name:
            self.fail("expected a tensor name", "got an empty one")
        n_dimensions = self.u32(f"dimension count of '{name}'")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            self.fail(f"expected 1 to {MAX_DIMENSIONS} dimensions for tensor '{name}'", f"got {n_dimensions}")
        dimensions = tuple(self.u64(f"dimension of '{name}'") for _ in range(n_dimensions))
        if min(dimensions) < 1:
            self.fail(f"expected dimensions of at least 1 for tensor '{name}'", f"got {dimensions}")
        return name, dimensions, self.u32(f"type of '{name}'"), self.u64(f"offset of '{name}'")

    def layout(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Refuse tensors past the end of the file and tensors that share bytes."""
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset + tensor.nbytes > self.file_bytes:
                self.fail(
                    f"expected tensor '{tensor.name}' to end within the file's {self.file_bytes} bytes",
                    f"it ends at {tensor.offset + tensor.nbytes} (truncated download? fetch it again)",
                )
            if tensor.offset < end:
                self.fail("expected tensors side by side", f"'{tensor.name}' overlaps '{before}'")
            end, before = tensor.offset + tensor.nbytes, tensor.name

    def value(self, key: str, kind: int, depth: int) -> Any:
        """Return one metadata value of the given type number."""
        if kind == _STRING:
            return self.string(f"'{key}'", MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key, depth + 1)
        if kind not in _SCALARS:
            self.fail(f"expected a known value type for '{key}'", f"got type {kind}")
        return self.scalars(key, kind, 1)[0]

    def array(self, key: str, depth: int) -> list[Any]:
        """Return one array."""
        if depth > MAX_ARRAY_DEPTH:
            self.fail(f"expected arrays at most {MAX_ARRAY_DEPTH} deep in '{key}'", "got a deeper one")
        kind, count = self.u32(f"item type of '{key}'"), self.u64(f"length of '{key}'")
        self.items += count
        if self.items > MAX_ARRAY_ITEMS:
            self.fail(f"expected at most {MAX_ARRAY_ITEMS} array items", f"'{key}' brings them to {self.items}")
        if kind in _SCALARS:
            return self.scalars(key, kind, count)
        if kind == _ARRAY:
            self.arrays += count
            if self.arrays > MAX_NESTED_ARRAYS:
                self.fail(f"expected at most {MAX_NESTED_ARRAYS} arrays in arrays", f"'{key}' has {self.arrays}")
        elif kind != _STRING:
            self.fail(f"expected a known item type for '{key}'", f"got type {kind}")
        # A string is at least its length, an array at least its type and length.
        self.need(count * (8 if kind == _STRING else 12), f"'{key}'")
        if kind == _STRING:
            return self.strings(key, count)
        return [self.array(key, depth + 1) for _ in range(count)]

    def scalars(self, key: str, kind: int, count: int) -> list[Any]:
        """Return `count` numbers or truth values."""
        layout = struct.Struct(f"<{_SCALARS[kind][1]}")
        self.need(count * layout.size, f"'{key}'")
        values: list[Any] = list(struct.unpack_from(f"<{count}{_SCALARS[kind][1]}", self.content, self.position))
        self.position += count * layout.size
        if kind == _BOOL:
            if not all(value in (0, 1) for value in values):
                self.fail(f"expected 0 or 1 for a truth value in '{key}'", "got another number")
            return [bool(value) for value in values]
        return values

    def strings(self, key: str, count: int) -> list[str]:
        """Return `count` strings: the hot loop of a header, a tokenizer has 10^5 of them."""
        content, position, size = self.content, self.position, self.size
        length_at = _U64.unpack_from
        found: list[str] = []
        append = found.append
        for _ in range(count):
            if position + 8 > size:
                self.truncated(f"'{key}'", 8, size - position)
            (length,) = length_at(content, position)
            position += 8
            end = position + length
            if end > size:
                self.truncated(f"'{key}'", length, size - position)
            if length > MAX_STRING_BYTES:
                self.fail(f"expected strings of at most {MAX_STRING_BYTES} bytes in '{key}'", f"got {length}")
            try:
                append(content[position:end].decode())
            except UnicodeDecodeError:
                self.fail(f"expected UTF-8 in '{key}'", f"got {short(content[position:end])}")
            position = end
        self.position = position
        return found

    def string(self, what: str, limit: int) -> str:
        """Return one string of at most `limit` bytes."""
        length = self.u64(f"length of {what}")
        self.need(length, what)
        if length > limit:
            self.fail(f"expected at most {limit} bytes for {what}", f"got {length}")
        encoded = self.content[self.position : self.position + length]
        self.position += length
        try:
            return encoded.decode()
        except UnicodeDecodeError:
            self.fail(f"expected UTF-8 for {what}", f"got {short(encoded)}")

    def u32(self, what: str) -> int:
        """Return the next unsigned 32-bit number."""
        self.need(4, what)
        (number,) = _U32.unpack_from(self.content, self.position)
        self.position += 4
        return int(number)

    def u64(self, what: str) -> int:
        """Return the next unsigned 64-bit number."""
        self.need(8, what)
        (number,) = _U64.unpack_from(self.content, self.position)
        self.position += 8
        return int(number)

    def bound(self, what: str, count: int, limit: int, least_bytes: int) -> None:
        """Refuse a count that the rest of the file cannot hold, or that no real model has."""
        left = self.file_bytes - self.position
        if count * least_bytes > left:
            self.fail(f"expected no more {what} than {left} bytes can hold", f"got a count of {count}")
        if count > limit:
            self.fail(f"expected at most {limit} {what}", f"got a count of {count}")

    def need(self, n_bytes: int, what: str) -> None:
        """Refuse to read past the end of the file."""
        if self.position + n_bytes > self.size:
            self.truncated(what, n_bytes, self.size - self.position)

    def truncated(self, what: str, n_bytes: int, left: int) -> NoReturn:
        """Raise the error of a header that ends too early, or does not end."""
        if self.file_bytes > self.size:
            self.fail(f"expected a header of at most {MAX_HEADER_BYTES} bytes", f"{what} goes beyond")
        self.fail(
            f"expected {n_bytes} more bytes for {what}", f"the file ends after {left} (truncated? fetch it again)"
        )

    def fail(self, expected: str, got: str) -> NoReturn:
        """Raise one line naming the file, what was expected and what it got."""
        # Names come from the file: they must not break the line, nor fill the screen.
        raise malformed(self.path, f"{expected}, {got}")


def malformed(path: Path, fault: str) -> ModelError:
    """Return the error of a header that is wrong."""
    return ModelError(f"{path}: not a well-formed GGUF: {plain(fault, 400)}")


def short(value: object) -> str:
    """Return a foreign value as it may stand in an error: one printable line that fits, however large it is."""
    return plain(reprlib.repr(value), 60)
