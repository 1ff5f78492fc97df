"""The packed form of weight matrices: an exact inverse, nothing inflated, every weight where the kernels look."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from enginecmp_custom_cuda.weights import order
from enginecmp_custom_cuda.weights.kinds import KINDS, decode, encode, quants
from enginecmp_custom_cuda.weights.packing import locate, pack, pack_pieces, packed_bytes, unpack

BYTES_OF_16_WEIGHTS = {"F32": 64, "F16": 32, "BF16": 32, "Q8_0": 17, "Q4_0": 9}

kinds = st.sampled_from(sorted(KINDS))
row_counts = st.integers(1, 70)
# Chunks of 512: none, one and two full ones, with and without a narrow one.
column_counts = st.integers(1, 40).map(lambda blocks: 32 * blocks)
seeds = st.integers(0, 2**32 - 1)


def random_rows(kind: str, rows: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """Any bytes are some weights; no byte is 0, so that padding can be told apart."""
    shape = (rows, KINDS[kind].row_bytes(columns))
    return np.random.default_rng(seed).integers(1, 256, shape, np.uint8)


@given(kinds, row_counts, column_counts, seeds)
@settings(deadline=None)
def test_unpacking_gives_the_files_bytes_back(kind: str, rows: int, columns: int, seed: int) -> None:
    raw = random_rows(kind, rows, columns, seed)
    packed = pack(raw, kind, rows, columns)
    assert (unpack(packed, kind, rows, columns) == raw).all()


@given(kinds, row_counts, column_counts, seeds)
@settings(deadline=None)
def test_nothing_is_inflated_but_by_zeros_in_the_last_tile(kind: str, rows: int, columns: int, seed: int) -> None:
    packed = pack(random_rows(kind, rows, columns, seed), kind, rows, columns)
    padding = -rows % 16
    row_bytes = columns // 16 * BYTES_OF_16_WEIGHTS[kind]
    assert len(packed) == packed_bytes(rows, columns, kind) == (rows + padding) * row_bytes
    assert np.count_nonzero(packed == 0) == padding * row_bytes
    assert (packed[: rows // 16 * 16 * row_bytes] > 0).all()


@given(kinds, row_counts, column_counts, seeds, st.data())
@settings(deadline=None)
def test_every_weight_is_at_its_address(kind: str, rows: int, columns: int, seed: int, data: st.DataObject) -> None:
    """Read one weight from packed memory by the layout's own words and compare with gguf-py's value of it."""
    random = np.random.default_rng(seed)
    raw = encode(random.standard_normal((rows, columns), np.float32), kind)
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    memory = pack(raw, kind, rows, columns).tobytes()
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))

    # Tiles in order, in a tile chunks in order, in a chunk rows in order, then scales [16][width / 32].
    per_16 = BYTES_OF_16_WEIGHTS[kind]
    chunk = column // 512
    width = min(512, columns - 512 * chunk)
    start = row // 16 * columns * per_16 + chunk * 512 * per_16
    r, c = row % 16, column % 512
    weights, scales = memory[start:], memory[start + 16 * width * (per_16 - 1) // 16 :]
    scale = np.frombuffer(scales, np.float16, offset=2 * (r * (width // 32) + c // 32), count=1)[0]
    match kind:
        case "F32":
            value = np.frombuffer(weights, np.float32, offset=4 * (r * width + c), count=1)[0]
        case "F16":
            value = np.frombuffer(weights, np.float16, offset=2 * (r * width + c), count=1)[0]
        case "BF16":
            at = 2 * (r * width + c)
            value = np.frombuffer(b"\0\0" + weights[at : at + 2], np.float32)[0]
        case "Q8_0":
            value = np.frombuffer(weights, np.int8, offset=r * width + c, count=1)[0] * np.float32(scale)
        case _:
            byte = weights[(r * width + c) // 32 * 16 + c % 16]
            value = ((byte >> 4 if c % 32 >= 16 else byte & 15) - 8) * np.float32(scale)
    assert value == expected[row, column]


@given(kinds, row_counts, column_counts, st.data())
@settings(deadline=None)
def test_locate_is_where_packing_puts_a_change(kind: str, rows: int, columns: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    raw = np.zeros((rows, KINDS[kind].row_bytes(columns)), np.uint8)
    block = raw.reshape(rows, columns // 32, -1)[row, column // 32]
    found = locate(row, column, columns, kind)
    scale_bytes = 2 if KINDS[kind].scaled else 0
    if kind == "Q4_0":
        block[2 + column % 16] = 15 << found.shift
        assert found.shift == (4 if column % 32 >= 16 else 0)
    else:
        size = (KINDS[kind].block_bytes - scale_bytes) // 32
        block[scale_bytes + column % 32 * size] = 1
        assert found.shift == 0
    packed = pack(raw, kind, rows, columns)
    assert np.flatnonzero(packed).tolist() == [found.weight]
    block[:] = 0
    if KINDS[kind].scaled:
        block[0] = 1
        packed = pack(raw, kind, rows, columns)
        assert np.flatnonzero(packed).tolist() == [found.scale]
    else:
        assert found.scale is None


@given(kinds, row_counts, column_counts, seeds, st.integers(1, 200_000))
@settings(deadline=None)
def test_pieces_are_bounded_and_make_the_whole(kind: str, rows: int, columns: int, seed: int, piece_bytes: int) -> None:
    raw = random_rows(kind, rows, columns, seed)
    tile = 16 * raw.shape[1]
    asked: list[tuple[int, int]] = []

    def take(first: int, last: int) -> NDArray[np.uint8]:
        asked.append((first, last))
        return raw[first:last]

    whole = b""
    for offset, piece in pack_pieces(take, kind, rows, columns, piece_bytes):
        assert offset == len(whole)
        assert piece.nbytes <= max(piece_bytes, tile)
        assert piece.nbytes % tile == 0
        whole += piece.tobytes()
    assert whole == pack(raw, kind, rows, columns).tobytes()
    assert [each for first, last in asked for each in range(first, last)] == list(range(rows))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_chunks_begin_at_multiples_of_16_bytes(kind: str) -> None:
    columns = 1056  # 2 chunks of 512 and one of 32
    starts = [locate(16 * tile, column, columns, kind).weight for tile in range(3) for column in (0, 512, 1024)]
    per_16 = BYTES_OF_16_WEIGHTS[kind]
    expected = [tile * columns * per_16 + column * per_16 for tile in range(3) for column in (0, 512, 1024)]
    assert starts == expected
    assert all(start % 16 == 0 for start in starts)


def test_columns_that_are_not_whole_blocks_have_no_packed_form() -> None:
    with pytest.raises(AssertionError, match="48 columns"):
        packed_bytes(16, 48, "F32")


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_weights_are_those_of_gguf_py(kind: str) -> None:
    random = np.random.default_rng(5)
    weights = random.standard_normal((7, 96), np.float32)
    raw = encode(weights, kind)
    number = gguf.GGMLQuantizationType[kind]
    assert (raw == gguf.quantize(weights, number).view(np.uint8).reshape(7, -1)).all()
    assert (decode(raw, kind) == gguf.dequantize(raw, number)).all()
    assert (pack(weights, kind, 7, 96) == pack(raw, kind, 7, 96)).all()


def test_quants_are_the_blocks_whole_numbers() -> None:
    # A scale of 0.5, then elements 0..15 in the low and 16..31 in the high halves.
    block = np.float16(0.5).tobytes() + bytes(element | (15 - element) << 4 for element in range(16))
    values, scales = quants(np.frombuffer(block, np.uint8)[None], "Q4_0")
    assert values.tolist() == [[*range(-8, 8), *range(7, -9, -1)]]
    assert scales.tolist() == [[0.5]]
    block = np.float16(2).tobytes() + bytes(range(112, 144))
    values, scales = quants(np.frombuffer(block, np.uint8)[None], "Q8_0")
    assert values.tolist() == [[*range(112, 128), *range(-128, -112)]]
    assert scales.tolist() == [[2.0]]


def test_rotated_pairs_become_neighbours() -> None:
    # Two heads of 8, of which 6 turn in pairs (0, 3), (1, 4), (2, 5); 6 and 7 pass.
    head = [0, 3, 1, 4, 2, 5, 6, 7]
    assert order.rope_pairs(2, 8, 6, interleaved=False).tolist() == head + [8 + row for row in head]
    assert order.rope_pairs(2, 8, 6, interleaved=True).tolist() == list(range(16))


def test_values_keep_their_order() -> None:
    found = order.qkv(heads=2, kv_heads=1, head_dim=4, rope_dims=4, interleaved=False)
    assert found.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 13, 14, 15]


def test_gate_and_up_alternate() -> None:
    assert order.gate_up(3).tolist() == [0, 3, 1, 4, 2, 5]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.data(), st.booleans())
@settings(deadline=None)
def test_orders_are_undone_by_their_inverse(
    heads: int, kv_heads: int, half: int, data: st.DataObject, interleaved: bool
) -> None:
    rope_dims = 2 * data.draw(st.integers(1, half))
    found = order.qkv(heads, kv_heads, 2 * half, rope_dims, interleaved)
    rows = np.random.default_rng(1).standard_normal(len(found))
    assert len(found) == (heads + 2 * kv_heads) * 2 * half
    assert (rows[found][order.inverse(found)] == rows).all()
