"""Attention of a call whose tokens are most of their sequences' only ones: steps of more sequences than 8.

A block of `flash_*` walks all positions of its tokens, which suits prompts: there are many tokens, and they share what
it reads. Here every token reads a cache of its own, and lengths differ, so the positions are split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ...device import build
from ..decode.geometry import MOST_SPLITS, SPLIT_POSITIONS, THREADS, attention_grid
from .gemm import ceil_div
from .params import Split

if TYPE_CHECKING:
    from ...config import ModelConfig
    from ...device import Device
    from ...device.module import Launch
    from ..memory.params import Cache

MERGE_THREADS = 128

MOST_TOKENS = 128
"""Of a call: as many as 64 sequences can bring while most have one."""

BLOCKS = 8
"""Of a multiprocessor, about, where all tokens use all of their splits: some rounds, in which lengths even out."""


def splits_for(tokens: int, blocks_a_token: int, positions: int, multiprocessors: int) -> int:
    """Return the most splits that a token of a call may have.

    Args:
        tokens: of the call.
        blocks_a_token: of a split.
        positions: most of a sequence.
        multiprocessors: of the device.
    """
    enough = ceil_div(BLOCKS * multiprocessors, tokens * blocks_a_token)
    return max(1, min(positions // SPLIT_POSITIONS, MOST_SPLITS, enough))


class SplitAttention:
    """Prepares its launches, and has the memory for the splits.

    Args:
        device: where.
        config: the model's shape.
        element_bytes: of the cache.
        positions: most of a sequence.
        defines: of the kernels: KV and HEAD_DIM.
        numbers: of tokens that calls may have.
    """

    def __init__(
        self,
        device: Device,
        config: ModelConfig,
        element_bytes: int,
        positions: int,
        defines: Mapping[str, str],
        numbers: list[int],
    ) -> None:
        self._device = device
        self._config = config
        self._element_bytes = element_bytes
        self._positions = positions
        # attention.cuh is also a decode step's; here it takes one token of many.
        self._module = build(device, "attention_split", {**defines, "BATCH": "8"})
        rows = max(tokens * self.splits(tokens) for tokens in numbers) * config.heads
        self._values_bytes = rows * config.head_dim * 4
        self._memory = device.allocate(self._values_bytes + rows * 8, "attention's splits")
        self.nbytes = self._memory.nbytes

    def splits(self, tokens: int) -> int:
        """Return the most splits that a token of a call may have."""
        return splits_for(tokens, self._blocks(1), self._positions, self._device.multiprocessors)

    def launches(self, q: int, cache: Cache, position: int, slot: int, out: int, tokens: int) -> Iterator[Launch]:
        """Yield the launches of one layer's attention.

        Args:
            q: address of float32 (T, heads, head_dim).
            cache: of the layer.
            position: address of int32 (T,); below 0 for an empty token, whose row of `out` becomes zero.
            slot: address of int32 (T,), rows of the block table.
            out: address of float32 (T, heads, head_dim).
            tokens: T, one of `numbers`.
        """
        config, splits = self._config, self.splits(tokens)
        partial = self._memory.address
        params = Split(
            q, cache, position, slot, out, partial, partial + self._values_bytes, tokens, config.heads, splits
        )
        grid = (splits, config.kv_heads, self._blocks(tokens) // config.kv_heads)
        yield self._device.prepare(self._module.kernel("attention_split"), grid, THREADS, 0, params)
        if splits > 1:
            grid = (ceil_div(config.heads * config.head_dim // 4, MERGE_THREADS), tokens, 1)
            yield self._device.prepare(self._module.kernel("attention_merge"), grid, MERGE_THREADS, 0, params)

    def close(self) -> None:
        """Free the memory."""
        self._memory.free()

    def _blocks(self, tokens: int) -> int:
        """Return the blocks of one split of so many tokens."""
        config = self._config
        _, kv_heads, rest = attention_grid(
            config.heads, config.kv_heads, config.head_dim, self._element_bytes, tokens, 1, 1
        ).grid
        return kv_heads * rest
