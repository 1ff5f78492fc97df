"""The prefill's attention, against the oracle, over pages in any order."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from custom_cuda_oracle import reference
from custom_cuda_prefill_parts import Pages, bench
from numpy.typing import NDArray

from enginecmp_custom_cuda.device import Device

KERNELS = [("flash_f16", "KV_F16"), ("flash_f32", "KV_F16"), ("flash_f32", "KV_F32")]
TOLERANCES = {"flash_f16": 3e-3, "flash_f32": 2e-6}
"""Of outputs that are means of standard normal values: half has 11 bits, and the weights are halves too."""


class Piece(NamedTuple):
    """Neighbouring tokens of one sequence in a call."""

    slot: int
    start: int
    tokens: int


class Case(NamedTuple):
    """A call, and what must come of it."""

    q: NDArray[np.float32]
    pages: Pages
    position: NDArray[np.int32]
    slot: NDArray[np.int32]
    expected: NDArray[np.float64]


def case(pieces: list[Piece], heads: int, kv_heads: int, head_dim: int, seed: int, kv: str = "KV_F16") -> Case:
    """Return random queries over random caches; each sequence's cache ends with its piece."""
    random = np.random.default_rng(seed)
    slots = max(piece.slot for piece in pieces) + 1
    pages = Pages(slots, max(piece.start + piece.tokens for piece in pieces), kv_heads, head_dim, random)
    q, expected = [], []
    for piece in pieces:
        end = piece.start + piece.tokens
        queries = random.standard_normal((piece.tokens, heads, head_dim)).astype(np.float32)
        keys, values = random.standard_normal((2, end, kv_heads, head_dim)).astype(np.float32)
        if kv == "KV_F16":
            keys, values = (each.astype(np.float16).astype(np.float32) for each in (keys, values))
        pages.write(piece.slot, keys, values)
        q.append(queries)
        expected.append(reference.attention(queries, keys, values))
    return Case(
        np.concatenate(q),
        pages,
        np.concatenate([np.arange(piece.start, piece.start + piece.tokens) for piece in pieces]).astype(np.int32),
        np.concatenate([np.full(piece.tokens, piece.slot) for piece in pieces]).astype(np.int32),
        np.concatenate(expected),
    )


def check(device: Device, kernel: str, kv: str, made: Case, tile_tokens: int, scale: float = 1) -> None:
    """Run a case and compare; `scale` widens the tolerance."""
    with bench(device, kv=kv, head_dim=made.q.shape[-1]) as it:
        found = it.attend(kernel, made.q, made.pages, made.position, made.slot, tile_tokens)
    np.testing.assert_allclose(found, made.expected, rtol=0, atol=scale * TOLERANCES[kernel])


@pytest.mark.parametrize(("kernel", "kv"), KERNELS)
@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 64, 65, 129])
def test_a_prompt_from_its_beginning(device: Device, kernel: str, kv: str, tokens: int) -> None:
    made = case([Piece(0, 0, tokens)], heads=6, kv_heads=2, head_dim=16, seed=tokens, kv=kv)
    check(device, kernel, kv, made, {"flash_f16": 21, "flash_f32": 5}[kernel])


@pytest.mark.parametrize(("kernel", "kv"), KERNELS)
@pytest.mark.parametrize("start", [1, 62, 63, 64, 65, 127, 128])
def test_a_chunk_behind_others_at_the_edges_of_pages(device: Device, kernel: str, kv: str, start: int) -> None:
    made = case([Piece(0, start, 3)], heads=2, kv_heads=1, head_dim=16, seed=start, kv=kv)
    check(device, kernel, kv, made, 8)


@pytest.mark.parametrize(("kernel", "kv"), KERNELS)
@pytest.mark.parametrize("whole", [True, False])
def test_tokens_of_several_sequences_in_one_call(device: Device, kernel: str, kv: str, whole: bool) -> None:
    tile_tokens = {"flash_f16": 16, "flash_f32": 4}[kernel] if whole else 1
    pieces = [Piece(2, 70, 1), Piece(0, 0, 9), Piece(3, 130, 1), Piece(1, 60, 8), Piece(4, 0, 1)]
    made = case(pieces, heads=4, kv_heads=1, head_dim=16, seed=9, kv=kv)
    check(device, kernel, kv, made, tile_tokens)


@pytest.mark.parametrize(("kernel", "kv"), KERNELS)
def test_empty_tokens_give_zeros_and_disturb_nobody(device: Device, kernel: str, kv: str) -> None:
    made = case([Piece(0, 66, 4), Piece(1, 3, 3)], heads=2, kv_heads=2, head_dim=16, seed=10, kv=kv)
    at = [0, 4, 7]  # before, between and behind
    position, slot = np.insert(made.position, at, -1), np.insert(made.slot, at, (0, -1, -1))
    q, expected = np.insert(made.q, at, np.nan, axis=0), np.insert(made.expected, at, 0, axis=0)
    check(device, kernel, kv, Case(q, made.pages, position, slot, expected), 32)


@pytest.mark.parametrize(
    ("kernel", "head_dim"), [*(("flash_f16", each) for each in (32, 64, 96, 128)), ("flash_f32", 96)]
)
def test_every_length_of_head(device: Device, kernel: str, head_dim: int) -> None:
    made = case([Piece(0, 40, 30)], heads=4, kv_heads=2, head_dim=head_dim, seed=head_dim)
    check(device, kernel, "KV_F16", made, {"flash_f16": 32, "flash_f32": 8}[kernel])


@pytest.mark.parametrize("group", [7, 17, 65])
@pytest.mark.parametrize("kernel", ["flash_f16", "flash_f32"])
def test_groups_that_do_not_divide_a_block_or_exceed_it(device: Device, kernel: str, group: int) -> None:
    made = case([Piece(0, 0, 5)], heads=2 * group, kv_heads=2, head_dim=16, seed=group)
    rows = {"flash_f16": 64, "flash_f32": 16}[kernel]
    check(device, kernel, "KV_F16", made, max(1, rows // group))


@pytest.mark.parametrize(("kernel", "kv"), KERNELS)
def test_large_scores_do_not_overflow(device: Device, kernel: str, kv: str) -> None:
    random = np.random.default_rng(11)
    pages = Pages(1, 80, 1, 16, random)
    keys, values = random.standard_normal((2, 80, 1, 16)).astype(np.float16).astype(np.float32)
    q = (40 * random.standard_normal((80, 1, 16))).astype(np.float16).astype(np.float32)
    pages.write(0, keys, values)
    expected = reference.attention(q, keys, values)
    made = Case(q, pages, np.arange(80, dtype=np.int32), np.zeros(80, np.int32), expected)
    # A score of 100 has an error of 100 roundings, and so has its exponential.
    check(device, kernel, kv, made, 16, scale=10)
