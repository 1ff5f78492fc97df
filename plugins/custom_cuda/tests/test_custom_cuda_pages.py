"""Pages of the KV cache: no page has two owners, none is lost, and a promise is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginecmp import EngineError
from enginecmp_custom_cuda.engine.memory.pages import PAGE_TOKENS, Cache, Pages, pages_for


def require_sound(pages: Pages) -> None:
    """Every page has one owner or is free, and the tables say who."""
    owned = [list(pages.owned(slot)) for slot in range(len(pages.table))]
    everything = sorted([page for each in owned for page in each] + pages._free)
    assert everything == list(range(pages.count))
    for slot, each in enumerate(owned):
        assert pages.table[slot, : len(each)].tolist() == each
    assert 0 <= pages.unpromised <= pages.count


def test_tokens_take_whole_pages() -> None:
    assert [pages_for(tokens) for tokens in (0, 1, 64, 65, 128, 129)] == [0, 1, 1, 2, 2, 3]


@settings(max_examples=60, deadline=None)
@given(data=st.data(), slots=st.integers(1, 6), stride=st.integers(1, 8), spare=st.integers(0, 20))
def test_no_page_is_owned_twice_and_none_is_lost(data: Any, slots: int, stride: int, spare: int) -> None:
    pages = Pages(stride + spare, slots, stride)
    promised = dict.fromkeys(range(slots), 0)
    for _ in range(data.draw(st.integers(1, 40))):
        slot = data.draw(st.integers(0, slots - 1))
        match data.draw(st.sampled_from(("promise", "grow", "release", "swap"))):
            case "promise" if not pages.owned(slot):
                tokens = data.draw(st.integers(1, stride * PAGE_TOKENS))
                others = sum(count for other, count in promised.items() if other != slot)
                fits = others + pages_for(tokens) <= pages.count
                assert pages.promise(slot, tokens) == fits
                promised[slot] = pages_for(tokens) if fits else promised[slot]
            case "grow" if promised[slot]:
                tokens = data.draw(st.integers(1, promised[slot] * PAGE_TOKENS))
                before = len(pages.owned(slot))
                assert pages.grow(slot, tokens) == (pages_for(tokens) > before)
                assert len(pages.owned(slot)) == max(before, pages_for(tokens))
            case "release":
                pages.release(slot)
                promised[slot] = 0
            case "swap":
                other = data.draw(st.integers(0, slots - 1))
                owned = [list(pages.owned(each)) for each in (slot, other)]
                pages.swap(slot, other)
                assert [list(pages.owned(each)) for each in (other, slot)] == owned
                promised[slot], promised[other] = promised[other], promised[slot]
        require_sound(pages)
        assert pages.unpromised == pages.count - sum(promised.values())
    for slot in range(slots):
        pages.release(slot)
    assert pages.unpromised == len(pages._free) == pages.count


def test_what_was_promised_can_be_taken_after_everybody_else_has_taken_theirs() -> None:
    pages = Pages(6, 3, 4)
    assert pages.promise(0, 4 * PAGE_TOKENS)
    assert pages.promise(1, 2 * PAGE_TOKENS)
    assert not pages.promise(2, 1)
    pages.grow(1, 2 * PAGE_TOKENS)
    pages.grow(0, 4 * PAGE_TOKENS)
    assert len(set(pages.owned(0)) | set(pages.owned(1))) == 6
    pages.release(1)
    assert pages.promise(2, 65)


def test_a_sequence_cannot_grow_past_its_promise() -> None:
    pages = Pages(4, 1, 4)
    assert pages.promise(0, 64)
    with pytest.raises(AssertionError, match="past what it was promised"):
        pages.grow(0, 65)


class Shape:
    """What `Cache` reads of a model's configuration."""

    layers, kv_heads, head_dim = 3, 2, 16


class Room:
    """A device that only counts: `Cache` asks it for memory and never computes."""

    name = "a small device"

    def __init__(self, free: int) -> None:
        self.free = free
        self.uploads: list[tuple[int, list[int]]] = []

    def free_bytes(self) -> int:
        return self.free

    def allocate(self, nbytes: int, what: str) -> Any:
        assert nbytes <= self.free, f"{what} does not fit"
        self.free -= nbytes
        address, memory = 1 << 20, type("Memory", (), {})()
        memory.address, memory.nbytes, memory.free = address, nbytes, lambda: None
        return memory

    def upload(self, address: int, array: Any) -> None:
        self.uploads.append((address, np.asarray(array).ravel().tolist()))


# 2 kv_heads x (K, V) x 64 tokens x 16 elements x 2 bytes, in each of 3 layers.
PAGE_BYTES = 2 * 2 * 64 * 16 * 2


def cache_of(free: int, kind: str = "f16", context: int = 200, sequences: int = 3) -> tuple[Cache, Room]:
    room = Room(free)
    return Cache(room, Shape(), kind, context, sequences), room  # type: ignore[arg-type]


def test_the_cache_holds_the_context_of_every_sequence_where_the_device_has_room() -> None:
    cache, _ = cache_of(1 << 30)
    assert cache.pages.count == 3 * 4
    assert cache.page_bytes == PAGE_BYTES
    assert cache.token_bytes == 3 * PAGE_BYTES // 64
    assert cache.layer_address(2) - cache.layer_address(0) == 2 * 12 * PAGE_BYTES
    assert cache_of(1 << 30, "f32")[0].page_bytes == 2 * PAGE_BYTES


def test_a_small_device_shares_what_it_has_as_long_as_one_sequence_fits() -> None:
    cache, _ = cache_of(3 * PAGE_BYTES * 7)
    assert 4 <= cache.pages.count < 7


def test_a_cache_that_cannot_hold_one_sequence_says_what_would_fit() -> None:
    with pytest.raises(
        EngineError, match=r"KV cache of 200 tokens.*a small device has .* free; choose .* at most 128 tokens"
    ):
        cache_of(int(3 * PAGE_BYTES * 2.5))
    with pytest.raises(EngineError, match="use a smaller model"):
        cache_of(100)


def test_memory_that_others_will_need_is_left_to_them() -> None:
    room = Room(3 * PAGE_BYTES * 20)
    spare = 3 * PAGE_BYTES * 14
    cache = Cache(room, Shape(), "f16", 200, 3, spare_bytes=spare)  # type: ignore[arg-type]
    assert cache.pages.count < 6
    assert room.free >= spare


def test_slots_that_change_places_are_told_to_the_device() -> None:
    cache, room = cache_of(1 << 30)
    cache.pages.promise(0, 200)
    cache.grow(0, 130)
    table = cache.pages.table[0].tolist()
    room.uploads.clear()
    cache.swap(0, 2)
    assert cache.pages.owned(0) == []
    assert (cache.row_address(2), table) in room.uploads
    assert len(room.uploads) == 2


def test_only_a_page_that_is_new_is_told_to_the_device() -> None:
    cache, room = cache_of(1 << 30)
    cache.pages.promise(1, 200)
    room.uploads.clear()
    cache.grow(1, 60)
    cache.grow(1, 64)
    assert len(room.uploads) == 1
    cache.grow(1, 65)
    assert [address for address, _ in room.uploads] == [cache.row_address(1)] * 2
    assert room.uploads[-1][1] == cache.pages.table[1].tolist()
    cache.clear()
    assert cache.pages.unpromised == cache.pages.count
