"""The packed form of one weight matrix, and back: every byte of a GGUF tensor, in the order the kernels read it.

Rows go in tiles of 16 (the last one padded with zeros), columns in chunks of 512 (the last one narrower). Memory
holds the tiles in order, in a tile its chunks in order, and in a chunk of kc columns 16 rows of kc weights, one row
after the other, then for quantized kinds the float16 scales, [16][kc / 32]. Nothing is inflated but by the padding of
the last tile. A chunk begins at a multiple of 16 bytes from the matrix's first. `kernels/packing.cuh` computes the
same addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import BLOCK
from .kinds import KINDS, SCALE_BYTES, Kind, encode

TILE_ROWS = 16
CHUNK_COLUMNS = 512
PIECE_BYTES = 4 * 2**20
"""Most bytes packed at once, unless one tile is larger."""

Bytes = NDArray[np.uint8]


class Location(NamedTuple):
    """Where one weight is, in bytes from the matrix's first.

    Attributes:
        weight: the first byte of the weight; for Q4_0 the byte that holds it.
        shift: bits to shift that byte right by; 4 for the high half of a Q4_0 byte, else 0.
        scale: the first byte of the scale of its block; None for kinds without.
    """

    weight: int
    shift: int
    scale: int | None


def packed_bytes(rows: int, columns: int, kind: str) -> int:
    """Return the size of a packed matrix in bytes."""
    return -(-rows // TILE_ROWS) * tile_bytes(columns, kind)


def tile_bytes(columns: int, kind: str) -> int:
    """Return the size of 16 packed rows in bytes: exactly 16 rows of the file."""
    assert columns % BLOCK == 0, f"{columns} columns are not whole blocks of {BLOCK}"
    return TILE_ROWS * KINDS[kind].row_bytes(columns)


def locate(row: int, column: int, columns: int, kind: str) -> Location:
    """Return where the weight of a row and column is in a packed matrix of `columns` columns."""
    tile, row = divmod(row, TILE_ROWS)
    chunk, column = divmod(column, CHUNK_COLUMNS)
    block, within = divmod(column, BLOCK)
    width = min(CHUNK_COLUMNS, columns - CHUNK_COLUMNS * chunk)
    payload = KINDS[kind].payload_bytes
    # All chunks but the last of a tile are CHUNK_COLUMNS wide.
    start = tile * tile_bytes(columns, kind) + chunk * tile_bytes(CHUNK_COLUMNS, kind)
    first = start + (row * (width // BLOCK) + block) * payload
    scale = None
    if KINDS[kind].scaled:
        scale = start + TILE_ROWS * (width // BLOCK) * payload + SCALE_BYTES * (row * (width // BLOCK) + block)
    if kind == "Q4_0":
        return Location(first + within % 16, 4 * (within // 16), scale)
    return Location(first + within * payload // BLOCK, 0, scale)


def pack(source: NDArray[Any], kind: str, rows: int, columns: int) -> Bytes:
    """Return a whole packed matrix.

    Args:
        source: a file's bytes, shape (rows, row bytes), or float32 weights, shape (rows, columns), which are encoded
            first.
        kind: a name from `KINDS`.
        rows: true rows.
        columns: a multiple of 32.

    Returns:
        Bytes, shape (`packed_bytes`,).
    """
    raw: Bytes = source if source.dtype == np.uint8 else encode(source.astype(np.float32, copy=False), kind)
    packed = np.empty(packed_bytes(rows, columns, kind), np.uint8)
    for offset, piece in pack_pieces(lambda first, last: raw[first:last], kind, rows, columns):
        packed[offset : offset + len(piece)] = piece
    return packed


def pack_pieces(
    take: Callable[[int, int], Bytes], kind: str, rows: int, columns: int, piece_bytes: int = PIECE_BYTES
) -> Iterator[tuple[int, Bytes]]:
    """Yield a packed matrix in pieces of whole tiles, in order.

    Args:
        take: returns the file's bytes of the rows first..last - 1, shape (last - first, row bytes).
        kind: a name from `KINDS`.
        rows: true rows.
        columns: a multiple of 32.
        piece_bytes: most bytes of a piece, unless one tile is larger.

    Yields:
        The offset from the matrix's first byte, and the bytes; these are overwritten when the next piece is asked for.
    """
    tile = tile_bytes(columns, kind)
    tiles = -(-rows // TILE_ROWS)
    step = min(tiles, max(1, piece_bytes // tile))
    packed = np.empty((step, tile), np.uint8)
    padded = np.zeros((TILE_ROWS, KINDS[kind].row_bytes(columns)), np.uint8)
    for first in range(0, tiles, step):
        last = min(tiles, first + step)
        whole = min(last, rows // TILE_ROWS)  # tiles that need no padding
        if whole > first:
            _move(take(first * TILE_ROWS, whole * TILE_ROWS), packed[: whole - first], KINDS[kind], columns, True)
        if last > whole:
            padded[: rows - whole * TILE_ROWS] = take(whole * TILE_ROWS, rows)
            _move(padded, packed[whole - first : last - first], KINDS[kind], columns, True)
        yield first * tile, packed[: last - first].reshape(-1)


def unpack(packed: Bytes, kind: str, rows: int, columns: int) -> Bytes:
    """Return the file's bytes, shape (rows, row bytes), of a packed matrix: the exact inverse of `pack`."""
    tiles = packed.reshape(-1, tile_bytes(columns, kind))
    raw = np.empty((len(tiles) * TILE_ROWS, KINDS[kind].row_bytes(columns)), np.uint8)
    _move(raw, tiles, KINDS[kind], columns, False)
    return raw[:rows]


def _move(raw: Bytes, packed: Bytes, kind: Kind, columns: int, packing: bool) -> None:
    """Copy whole tiles between file order (tiles * 16, row bytes) and packed order (tiles, tile bytes)."""
    tiles, full = len(packed), columns // CHUNK_COLUMNS
    blocks = raw.reshape(tiles, TILE_ROWS, columns // BLOCK, kind.block_bytes)
    edge = full * (CHUNK_COLUMNS // BLOCK)
    boundary = full * TILE_ROWS * kind.row_bytes(CHUNK_COLUMNS)
    scale_bytes = kind.block_bytes - kind.payload_bytes
    # The full chunks of a tile are alike, so they move in one go; then the narrow one.
    for part, memory, chunks in (
        (blocks[:, :, :edge], packed[:, :boundary], full),
        (blocks[:, :, edge:], packed[:, boundary:], 1),
    ):
        if part.shape[2] == 0:
            continue
        width = part.shape[2] // chunks  # in blocks
        # Views only: packed memory may be one tile of many, so nothing here may copy. (tiles, chunks, bytes)
        chunk = memory.reshape(tiles, chunks, -1)
        split = TILE_ROWS * width * kind.payload_bytes
        file_order = part.reshape(tiles, TILE_ROWS, chunks, width, kind.block_bytes).transpose(0, 2, 1, 3, 4)
        pairs = [(chunk[..., :split], file_order[..., scale_bytes:])]
        if kind.scaled:
            pairs.append((chunk[..., split:], file_order[..., :scale_bytes]))
        for ordered, scattered in pairs:
            shaped = ordered.reshape(scattered.shape)
            assert np.may_share_memory(shaped, packed)
            assert np.may_share_memory(scattered, raw)
            if packing:
                shaped[...] = scattered
            else:
                scattered[...] = shaped
