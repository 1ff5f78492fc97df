"""What tests of whole sessions share; the fixtures are in conftest.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp_custom_cuda import cmp_decode, cmp_prefill, cmp_reset


def generate(session: Any, token_ids: Sequence[int], output_tokens: int) -> list[int]:
    """Return the greedy ids of one request."""
    cmp_reset(session)
    first = cmp_prefill(session, token_ids, output_tokens)
    return [first, *cmp_decode(session, output_tokens - 1)]


def mean_kl(reference: NDArray[Any], logits: NDArray[Any]) -> float:
    """Return KL(reference || logits) in nats, averaged over positions, in float64."""

    def log_softmax(values: NDArray[Any]) -> NDArray[np.float64]:
        shifted = values.astype(np.float64) - values.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())
