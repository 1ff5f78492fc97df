"""How far one engine's next-token distributions are from the reference's, and how far is too far."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enginecmp.errors import CmpError
from enginecmp.gate.quality import log_softmax
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXACT_THRESHOLD = 1e-8
EXACT_THRESHOLDS = {"gpt2": 1e-6}
"""Where a family's kernels round on purpose: GGML takes GELU from a float16 table, which alone costs 2e-7 nats."""


class Divergence(msgspec.Struct, frozen=True):
    """How far one engine's distributions are from the reference's.

    Attributes:
        mean_kl: mean over positions of KL(reference || engine), nats.
        max_kl: the largest of them, nats.
        top1: share of positions with the same most likely token.
        positions: how many.
    """

    mean_kl: float
    max_kl: float
    top1: float
    positions: int


def exact_threshold(model: ModelInfo) -> float:
    """Return the largest mean KL, in nats, that passes on the float32 file."""
    return EXACT_THRESHOLDS.get(model.architecture, EXACT_THRESHOLD)


def divergence(reference: NDArray[np.floating], engine: NDArray[np.floating]) -> Divergence:
    """Compare teacher-forced logits position by position.

    Args:
        reference: raw logits, shape (T, vocabulary).
        engine: raw logits or log-probabilities, same shape.

    Raises:
        CmpError: the shapes differ, or a value is not finite.
    """
    import numpy as np

    if reference.shape != engine.shape:
        msg = f"expected logits of shape {reference.shape}, got {engine.shape}"
        raise CmpError(msg)
    if np.isnan(engine).any() or not np.isfinite(engine.max(axis=1)).all():
        bad = int(np.argmax(np.isnan(engine).any(axis=1) | ~np.isfinite(engine.max(axis=1))))
        msg = f"expected finite logits, got NaN or infinity at position {bad}"
        raise CmpError(msg)
    kl = np.empty(len(reference))
    for row in range(len(reference)):  # row by row: float64 of a whole prompt would be four times its size
        p = log_softmax(reference[row].astype(np.float64))
        q = log_softmax(engine[row].astype(np.float64))
        possible = p > -np.inf  # 0 log 0 = 0; impossible for the engine alone is infinitely far
        terms = np.exp(p[possible]) * (p[possible] - q[possible])
        # Rounding can leave a difference of nothing a hair below zero.
        kl[row] = np.maximum(0.0, terms.sum())
    top1 = float(np.mean(reference.argmax(axis=1) == engine.argmax(axis=1)))
    return Divergence(float(kl.mean()), float(kl.max()), top1, len(kl))
