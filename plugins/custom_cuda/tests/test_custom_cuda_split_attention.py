"""Attention split over the positions, against the oracle, and how many splits a call gets."""

from __future__ import annotations

import numpy as np
import pytest
from custom_cuda_oracle import reference
from custom_cuda_prefill_parts import bench
from test_custom_cuda_prefill_attention import Case, Piece, case

from enginecmp_custom_cuda.device import Device
from enginecmp_custom_cuda.engine.prefill.split_attention import BLOCKS, splits_for

TOLERANCE = 4e-6
"""Of outputs that are means of standard normal values, and of sums in float32."""

CACHES = ["KV_F16", "KV_F32"]

# Ends of pages and of splits: 256 positions for each split.
ENDS = (1, 2, 63, 64, 65, 255, 256, 257, 320, 511, 513, 700)


def check(device: Device, made: Case, splits: int, kv: str) -> None:
    with bench(device, kv=kv, head_dim=made.q.shape[-1]) as it:
        found = it.attend_split(made.q, made.pages, made.position, made.slot, splits)
    np.testing.assert_allclose(found, made.expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("splits", [1, 2, 3, 16])
def test_one_token_of_each_of_many_sequences_of_any_length(device: Device, kv: str, splits: int) -> None:
    pieces = [Piece(slot, end - 1, 1) for slot, end in enumerate(ENDS)]
    check(device, case(pieces, heads=4, kv_heads=2, head_dim=16, seed=splits, kv=kv), splits, kv)


def test_neighbours_of_one_sequence_see_what_is_before_them(device: Device) -> None:
    made = case([Piece(1, 254, 5), Piece(0, 300, 1)], heads=2, kv_heads=1, head_dim=16, seed=3)
    check(device, made, 2, "KV_F16")


@pytest.mark.parametrize("splits", [1, 3])
def test_empty_tokens_give_zeros_and_disturb_nobody(device: Device, splits: int) -> None:
    made = case([Piece(0, 600, 1), Piece(1, 3, 1)], heads=6, kv_heads=2, head_dim=16, seed=10)
    at = [0, 1, 2]  # before, between and behind
    position, slot = np.insert(made.position, at, -1), np.insert(made.slot, at, (0, -1, 7))
    q, expected = np.insert(made.q, at, np.nan, axis=0), np.insert(made.expected, at, 0, axis=0)
    check(device, Case(q, made.pages, position, slot, expected), splits, "KV_F16")


@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
def test_every_length_of_head(device: Device, head_dim: int) -> None:
    made = case([Piece(0, 299, 1), Piece(1, 40, 1)], heads=4, kv_heads=2, head_dim=head_dim, seed=head_dim)
    check(device, made, 2, "KV_F16")


@pytest.mark.parametrize("group", [1, 3, 7, 17])
def test_groups_that_do_not_divide_a_block_or_exceed_it(device: Device, group: int) -> None:
    made = case([Piece(0, 299, 1), Piece(1, 40, 1)], heads=2 * group, kv_heads=2, head_dim=16, seed=group)
    check(device, made, 2, "KV_F16")


def test_large_scores_do_not_overflow(device: Device) -> None:
    made = case([Piece(0, 599, 1)], heads=2, kv_heads=1, head_dim=16, seed=5, kv="KV_F32")
    # Scores of some hundred: the softmax is one key's, or nearly.
    keys, values = (made.pages.read(made.pages.memory, 0, which, 600) for which in range(2))
    q = made.q * np.float32(300)
    made = made._replace(q=q, expected=reference.attention(q, keys, values))
    with bench(device, kv="KV_F32") as it:
        found = it.attend_split(made.q, made.pages, made.position, made.slot, 3)
    np.testing.assert_allclose(found, made.expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("tokens", [16, 32, 64, 128])
def test_splits_fill_the_device_and_not_much_more(tokens: int) -> None:
    # Llama-3.2-1B on an H200: 8 key and value heads, one tile of 4 query heads.
    splits = splits_for(tokens, 8, 131072, 132)
    assert tokens * 8 * splits >= min(BLOCKS * 132, tokens * 8 * 16)
    assert tokens * 8 * (splits - 1) < BLOCKS * 132
    assert splits_for(tokens, 8, 511, 132) == 1
    assert splits_for(tokens, 8, 512, 132) <= 2
