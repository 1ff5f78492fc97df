"""Draws of the fake engine: temperature, then top-k, then top-p."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def draw(logits: NDArray[np.float32], parameters: Mapping[str, Any], random: Any) -> int:
    """Return an id drawn after temperature, top-k and top-p."""
    chances = nucleus(logits, parameters)
    return int(random.choice(len(chances), p=chances))


def nucleus(logits: NDArray[np.float32], parameters: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the probabilities that are left after temperature, top-k and top-p."""
    import numpy as np

    chances = np.exp((logits.astype(np.float64) - logits.max()) / parameters["temperature"])
    order = np.argsort(-chances)
    if parameters["top_k"]:
        chances[order[parameters["top_k"] :]] = 0
    chances /= chances.sum()
    # The smallest set of the most likely ids that reaches top_p: the one that passes it belongs to it.
    before = np.concatenate(([0.0], np.cumsum(chances[order])[:-1]))
    chances[order[before >= parameters["top_p"]]] = 0
    return np.asarray(chances / chances.sum())
