"""How a decode step computes, and the memory that it works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..memory.ring import Ring
from . import geometry

if TYPE_CHECKING:
    from ...config import ModelConfig
    from ...device import Device, Memory


@dataclass(frozen=True)
class DecodeSettings:
    """How a step computes.

    Attributes:
        positions: most tokens of a sequence.
        kv: elements of the cache, "f16" or "f32".
        exact: float32 activations also where weights are integers.
        overlap: launches may begin before the one before them has ended (programmatic dependent launch).
        logits: keep every step's logits.
        ring_slots: ids of a sequence that may wait for the host.
    """

    positions: int
    kv: str = "f16"
    exact: bool = False
    overlap: bool = True
    logits: bool = False
    ring_slots: int = 64


class DecodeBuffers:
    """What a step works on. Steps of other batch sizes may share it: theirs are the first sequences.

    Attributes:
        batch: sequences that there is room for.
        ring: where ids come out.
        logits: address of float32 (batch, vocabulary), or 0.

    Each other name is an address: x float32 (batch, hidden); q (batch, heads, head_dim); h (batch, inner); partial and
    partial_ml, attention's splits; best uint64 (batch,); token, position, count, active int32 (batch,).
    """

    def __init__(self, device: Device, config: ModelConfig, batch: int, settings: DecodeSettings) -> None:
        splits = max(1, min(geometry.MOST_SPLITS, settings.positions // geometry.SPLIT_POSITIONS))
        width = config.heads * config.head_dim
        self.batch = batch
        self._memory: list[Memory] = []
        self._device = device

        def allocate(count: int, what: str, size: int = 4) -> int:
            self._memory.append(device.allocate(batch * count * size, what=f"the step's {what}"))
            return self._memory[-1].address

        self.x = allocate(config.width, "hidden states")
        self.q = allocate(width, "queries")
        self.partial = allocate(width * splits, "attention")
        self.partial_ml = allocate(config.heads * splits * 2, "attention's sums")
        self.h = allocate(config.feed_forward, "inner states")
        self.best = allocate(1, "best ids", 8)
        self.token = allocate(1, "ids")
        self.position = allocate(1, "positions")
        self.count = allocate(1, "counts")
        self.active = allocate(1, "mask")
        self.logits = allocate(config.vocabulary, "logits") if settings.logits else 0
        self.ring = Ring(device, settings.ring_slots, batch)
        device.fill(self.best, batch * 8, 0)
        device.fill(self.position, batch * 4, 0xFF)  # -1: empty
        device.fill(self.count, batch * 4, 0)

    def close(self) -> None:
        """Give the memory back."""
        for memory in self._memory:
            memory.free()
        self._memory = []
        self.ring.close()
