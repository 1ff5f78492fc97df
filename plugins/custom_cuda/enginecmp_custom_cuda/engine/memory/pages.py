"""The paged KV cache: one allocation, pages of 64 tokens, and which pages belong to which sequence.

A sequence takes a page when it grows past the last one and gives all of them back when it ends, so sequences of
different lengths share one pool and none is copied. `Pages` is the bookkeeping and knows no device; `Cache` adds the
memory and keeps the block tables that kernels read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from enginecmp import EngineError

from ...device.memory import size_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...config import ModelConfig
    from ...device.device import Device

PAGE_TOKENS = 64
ELEMENT_BYTES = {"f16": 2, "f32": 4}
HEADROOM = 0.97
"""Share of the free memory that the cache may take: drivers need some for what they load later."""


def pages_for(tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


class Pages:
    """Who owns which page.

    Pages are first promised to a sequence and taken when it grows. What is promised can always be taken, so a
    sequence that was let in runs to its end whatever the others do.

    Args:
        count: pages in the pool.
        slots: most sequences.
        stride: most pages of one sequence.
    """

    def __init__(self, count: int, slots: int, stride: int) -> None:
        self.count = count
        self.table: NDArray[np.int32] = np.zeros((slots, stride), np.int32)  # (slots, stride)
        self._free = list(range(count - 1, -1, -1))
        self._owned: list[list[int]] = [[] for _ in range(slots)]
        self._promised = [0] * slots

    @property
    def unpromised(self) -> int:
        """Pages that no sequence has been promised."""
        return self.count - sum(self._promised)

    def owned(self, slot: int) -> Sequence[int]:
        """Return the pages of a sequence, in the order of its tokens."""
        return self._owned[slot]

    def promise(self, slot: int, tokens: int) -> bool:
        """Set aside room for a sequence's whole length; False where there is none now.

        Args:
            slot: an empty one.
            tokens: prompt and output together.
        """
        assert not self._owned[slot], "the slot still has a sequence"
        wanted = pages_for(tokens)
        if wanted > self.unpromised + self._promised[slot]:
            return False
        self._promised[slot] = wanted
        return True

    def grow(self, slot: int, tokens: int) -> bool:
        """Take the pages that a sequence needs to hold `tokens` tokens; return whether its table has changed."""
        owned = self._owned[slot]
        wanted = pages_for(tokens)
        if wanted <= len(owned):
            return False
        assert wanted <= self._promised[slot], "a sequence grows past what it was promised"
        for place in range(len(owned), wanted):
            page = self._free.pop()
            owned.append(page)
            self.table[slot, place] = page
        return True

    def release(self, slot: int) -> None:
        """Take all pages of a sequence back, and the promise."""
        self._free.extend(reversed(self._owned[slot]))
        self._owned[slot] = []
        self._promised[slot] = 0

    def swap(self, one: int, other: int) -> None:
        """Let two slots change places; either may be empty."""
        self._owned[one], self._owned[other] = self._owned[other], self._owned[one]
        self._promised[one], self._promised[other] = self._promised[other], self._promised[one]
        self.table[[one, other]] = self.table[[other, one]]


class Cache:
    """Keys and values of all sequences on the device.

    Args:
        device: where.
        config: the model's shape.
        kind: "f16" or "f32".
        context_tokens: most tokens of one sequence.
        max_sequences: most sequences at once.
        spare_bytes: of the device's free memory, to be left to others.

    Raises:
        EngineError: not even one sequence of `context_tokens` fits the device's free memory; it says how many would.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        kind: str,
        context_tokens: int,
        max_sequences: int,
        spare_bytes: int = 0,
    ) -> None:
        self.kind = kind
        self.context_tokens = context_tokens
        self.page_bytes = config.kv_heads * 2 * PAGE_TOKENS * config.head_dim * ELEMENT_BYTES[kind]  # of one layer
        self.token_bytes = config.layers * self.page_bytes // PAGE_TOKENS
        stride = pages_for(context_tokens)
        count = _affordable(device, config.layers * self.page_bytes, context_tokens, max_sequences, spare_bytes)
        self.pages = Pages(count, max_sequences, stride)
        self._device = device
        self._layer_bytes = count * self.page_bytes
        self._memory = device.allocate(config.layers * self._layer_bytes, "KV cache")
        self._table = device.allocate(self.pages.table.nbytes, "block tables")
        self.upload()

    @property
    def nbytes(self) -> int:
        """Bytes on the device: pages and block tables."""
        return self._memory.nbytes + self._table.nbytes

    @property
    def table_address(self) -> int:
        """Where the block tables are: int32 (max_sequences, table_stride)."""
        return self._table.address

    @property
    def table_stride(self) -> int:
        """Entries of one sequence's block table."""
        return int(self.pages.table.shape[1])

    def layer_address(self, layer: int) -> int:
        """Return where a layer's pages begin: [page][kv_head][K, V][64 tokens][head_dim]."""
        return self._memory.address + layer * self._layer_bytes

    def row_address(self, slot: int) -> int:
        """Return where the block table of a slot begins."""
        return self._table.address + slot * self.table_stride * 4

    def grow(self, slot: int, tokens: int) -> None:
        """Make room for a sequence's first `tokens` tokens, on the device too.

        Steps that are under way read entries that are already there, which this leaves as they are.
        """
        if self.pages.grow(slot, tokens):
            self._device.upload(self.row_address(slot), self.pages.table[slot])

    def swap(self, one: int, other: int) -> None:
        """Let two slots change places, on the device too; no step that reads their tables may be under way."""
        self.pages.swap(one, other)
        for slot in (one, other):
            self._device.upload(self.row_address(slot), self.pages.table[slot])

    def upload(self) -> None:
        """Copy all block tables to the device."""
        self._device.upload(self._table.address, self.pages.table)

    def clear(self) -> None:
        """Take all pages back."""
        for slot in range(len(self.pages.table)):
            self.pages.release(slot)

    def close(self) -> None:
        """Free the memory."""
        self._memory.free()
        self._table.free()


def _affordable(device: Device, bytes_per_page: int, context_tokens: int, max_sequences: int, spare_bytes: int) -> int:
    """Return how many pages the cache gets: what was asked for, or what the device has and one sequence needs.

    Raises:
        EngineError: one whole sequence does not fit.
    """
    one = pages_for(context_tokens)
    free = device.free_bytes()
    room = max(0, int(free * HEADROOM) - spare_bytes) // bytes_per_page
    if room >= one:
        return min(one * max_sequences, room)
    fits = "use a smaller model or a larger device"
    if room:
        fits = f"choose a scenario whose cells have at most {room * PAGE_TOKENS} tokens, prompt and output together"
    msg = (
        f"custom_cuda: expected {size_text(one * bytes_per_page)} for the KV cache of {context_tokens} tokens, "
        f"{device.name} has {size_text(free)} free; {fits}"
    )
    raise EngineError(msg)
