"""Quality beside speed: what an engine's next-token distributions cost, in nats, on the bundled text.

Everything is read from the logits that the equivalence gate fetches anyway: nothing here is timed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from enginecmp.types import NO_ID

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FEWEST_BATCH, _MOST_BATCHES, _FEWEST_BATCHES = 8, 30, 6
"""Batches of at least 8 positions, at most 30 of them; with fewer than 6 there is no interval.

Schmeiser 1982 (Operations Research 30(3), 556-568): more than 30 batches add next to nothing to the interval, while
longer ones lessen the correlation that is left between them.
"""


class Quality(msgspec.Struct, frozen=True):
    """How well an engine predicts a text, beside the reference.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per position.
        reference_perplexity: the same of the reference, on the same positions.
        nll_difference: mean over positions of the engine's negative log-likelihood minus the reference's, nats.
        low: lower 95 % limit of it; None with too few positions.
        high: upper 95 % limit likewise.
    """

    perplexity: float
    reference_perplexity: float
    nll_difference: float
    low: float | None
    high: float | None


def log_softmax(row: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log-probabilities of one row of logits, shape (vocabulary,)."""
    import numpy as np

    shifted = row - row.max()
    return np.asarray(shifted - np.log(np.sum(np.exp(shifted))))


def negative_log_likelihoods(logits: NDArray[np.float32], token_ids: Sequence[int]) -> NDArray[np.float64]:
    """Return what each next token of a text cost: -log q(token t + 1 | tokens 0..t) at positions 0..T - 2.

    Row by row, so that a long text never stands in memory a second time in float64.

    Args:
        logits: teacher-forced, raw or normalized, shape (T, vocabulary).
        token_ids: the T ids of the text.

    Returns:
        Nats, shape (T - 1,); infinite where the engine excludes the token that came.
    """
    import numpy as np

    costs = np.empty(len(token_ids) - 1)
    for position, following in enumerate(token_ids[1:]):
        costs[position] = -log_softmax(logits[position].astype(np.float64))[following]
    return costs


def quality(reference: NDArray[np.float64], engine: NDArray[np.float64]) -> Quality:
    """Compare two engines' negative log-likelihoods position by position.

    Pairing takes out how hard the text is. Neighbouring positions share their context, so the interval rests on
    means of batches of neighbours, which are nearly independent (Conway 1963; Schmeiser 1982), and Student's t.

    Args:
        reference: nats per position, shape (n,), n >= 1.
        engine: likewise, on the same positions.
    """
    import numpy as np

    low = high = None
    with np.errstate(invalid="ignore"):
        difference = engine - reference
    batches = min(_MOST_BATCHES, len(difference) // _FEWEST_BATCH)
    if batches >= _FEWEST_BATCHES and np.isfinite(difference).all():
        from scipy.special import stdtrit

        means = np.array([batch.mean() for batch in np.array_split(difference, batches)])
        half = float(stdtrit(batches - 1, 0.975) * means.std(ddof=1) / math.sqrt(batches))
        low, high = float(difference.mean()) - half, float(difference.mean()) + half
    with np.errstate(over="ignore"):
        return Quality(
            perplexity=float(np.exp(engine.mean())),
            reference_perplexity=float(np.exp(reference.mean())),
            nll_difference=float(difference.mean()),
            low=low,
            high=high,
        )


def agreement_tokens(reference: Sequence[int] | None, engine: Sequence[int] | None) -> int | None:
    """Return how many greedy tokens two engines share before they first part; None where ids are not known."""
    if reference is None or engine is None or NO_ID in engine or NO_ID in reference:
        return None
    return common_beginning(reference, engine)


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two texts share before they first part, or one of them ends."""
    agreed = 0
    for mine, others in zip(one, other, strict=False):
        if mine != others:
            break
        agreed += 1
    return agreed
