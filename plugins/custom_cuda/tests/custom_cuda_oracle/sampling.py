"""How a token is drawn: the definition that the sampling kernel follows, to the bit where float32 allows.

Filters come first: logits over the temperature, the `top_k` largest of them, and of these the fewest most likely that
reach `top_p` (Holtzman et al. 2020, arXiv:1904.09751, eq. 2). What is left is drawn by the Gumbel-max trick (Maddison
et al. 2014, arXiv:1411.0030): the largest of score + noise, where every id has noise of its own. So no sum over the
vocabulary is needed, and the draw does not depend on the order in which ids are looked at.

The noise of id i at step s of a request comes from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3") with the key (seed's low word, seed's high word) and the counter (i / 4, s, 0, 0), word i % 4 of the
four. A step is the number of ids that the request has already been given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = np.uint64(0xFFFFFFFF)
_LARGEST_UNIFORM = np.nextafter(np.float32(1), np.float32(0))


def philox(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Return four words of random bits a counter: Philox4x32-10.

    Args:
        counter: shape (..., 4), words of 32 bits.
        key: shape (..., 2), words of 32 bits; broadcast against the counter.

    Returns:
        Shape (..., 4).
    """
    c = [np.asarray(counter, np.uint64)[..., i] for i in range(4)]
    k = [np.asarray(key, np.uint64)[..., i] for i in range(2)]
    for _ in range(_ROUNDS):
        first, second = c[0] * np.uint64(_MULTIPLIERS[0]), c[2] * np.uint64(_MULTIPLIERS[1])
        high = (second >> np.uint64(32)) ^ c[1] ^ k[0], (first >> np.uint64(32)) ^ c[3] ^ k[1]
        c = [high[0], second & _WORD, high[1], first & _WORD]
        k = [(k[i] + np.uint64(_WEYL[i])) & _WORD for i in range(2)]
    return np.stack(np.broadcast_arrays(*c), axis=-1).astype(np.uint32)


def uniforms(seed: int, step: int, vocabulary: int) -> NDArray[np.float32]:
    """Return a number in (0, 1) for every id, shape (vocabulary,), to the bit.

    A word w becomes fma(float32(w), 2**-32, 2**-33), at most the largest float32 below 1: fine steps near 0, where
    they decide, and never 0.
    """
    blocks = -(-vocabulary // 4)
    counter = np.zeros((blocks, 4), np.uint64)
    counter[:, 0] = np.arange(blocks)
    counter[:, 1] = step
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:vocabulary]
    # A float32 and both powers of two are float64s, and so is their sum: the only rounding is the last, as in an fma.
    fused = words.astype(np.float32).astype(np.float64) * 2.0**-32 + 2.0**-33
    return np.minimum(fused.astype(np.float32), _LARGEST_UNIFORM)


def gumbel(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return -log(-log1p(-u)): Gumbel noise, largest where u is smallest.

    log1p keeps the digits of a small u, which make the rare large noises.
    """
    return -np.log(-np.log1p(-uniform))


def greedy(logits: ArrayLike) -> int:
    """Return the most likely id; ties go to the lowest."""
    return int(np.argmax(np.asarray(logits)))


def candidates(scores: ArrayLike, top_k: int, top_p: float) -> NDArray[np.bool_]:
    """Return which ids may be drawn, shape (vocabulary,).

    Args:
        scores: logits over the temperature, shape (vocabulary,).
        top_k: how many of the largest stay, ties to the lowest id; 0 keeps all.
        top_p: of these the fewest most likely stay whose probabilities, renormalized, reach this; at least one.
            1 keeps all.
    """
    values = np.asarray(scores, np.float64)
    order = np.argsort(-values, kind="stable")  # ties: the lowest id first
    if top_k > 0:
        order = order[:top_k]
    if top_p < 1:
        chances = np.exp(values[order] - values[order[0]])
        before = np.cumsum(chances) - chances  # of those more likely
        order = order[: max(1, np.count_nonzero(before < top_p * chances.sum()))]
    kept = np.zeros(values.shape, np.bool_)
    kept[order] = True
    return kept


def sample(logits: ArrayLike, temperature: float, top_k: int, top_p: float, seed: int, step: int) -> int:
    """Draw one id.

    Args:
        logits: shape (vocabulary,), float32.
        temperature: divides the logits; 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        seed: of the request, below 2**64.
        step: ids that the request has been given before.
    """
    values = np.asarray(logits, np.float32)
    if temperature == 0:
        return greedy(values)
    scores = values / np.float32(temperature)
    noisy = scores + gumbel(uniforms(seed, step, len(scores)))
    return int(np.argmax(np.where(candidates(scores, top_k, top_p), noisy, -np.inf)))
