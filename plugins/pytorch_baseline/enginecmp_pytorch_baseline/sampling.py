"""How the next id is chosen: temperature, then top-k, then top-p, then a draw, each as torch's plainest call for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Choice = Callable[["Tensor"], int]
"""Logits of one position, (vocabulary,), to an id."""


def choice(temperature: float, top_k: int, top_p: float, seed: int, device: torch.device) -> Choice:
    """Return what chooses ids; every call draws on.

    Args:
        temperature: the logits are divided by it; 0 takes the largest.
        top_k: of so many of the most likely ids; 0 is off.
        top_p: of the fewest most likely ids that reach this probability (Holtzman et al. 2020, eq. 2); 1 is off.
        seed: of the draws.
        device: of the logits.
    """
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(logits: Tensor) -> int:
        scaled, ids = logits / temperature, None
        if top_k:
            scaled, ids = scaled.topk(min(top_k, len(scaled)))  # (top_k,)
        chances = scaled.softmax(dim=-1)
        if top_p < 1:
            chances, ids = _nucleus(chances, ids, top_p)
        drawn = torch.multinomial(chances, 1, generator=generator)
        return int(drawn if ids is None else ids[drawn])

    return draw


def _nucleus(chances: Tensor, ids: Tensor | None, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the fewest most likely entries that reach top_p together, the others at 0, in falling order."""
    ordered, order = chances.sort(descending=True)
    # The entry that passes top_p belongs to the nucleus.
    ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
    return ordered, order if ids is None else ids[order]
