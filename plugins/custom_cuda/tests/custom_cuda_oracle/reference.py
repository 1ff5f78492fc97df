"""A whole transformer in float64 NumPy, and each of its parts alone.

Sources: Touvron et al. 2023 (arXiv:2302.13971) for the block; Zhang & Sennrich 2019 (arXiv:1910.07467), eq. 4, for the
norm; Su et al. 2021 (arXiv:2104.09864), eq. 34, for the rotation; Ainslie et al. 2023 (arXiv:2305.13245) for grouped
heads; Shazeer 2020 (arXiv:2002.05202), eq. 6, for the feed-forward network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from enginecmp import GGUFFile
from enginecmp.models.decoder import RopeConfig
from enginecmp_custom_cuda.config import ModelConfig, read_config
from enginecmp_custom_cuda.weights.kinds import decode

Array = NDArray[np.float64]
Linear = Callable[[Array, NDArray[np.uint8], str], Array]
"""How a matrix is multiplied: x, (..., columns); a file's rows, (rows, row bytes); their kind -> (..., rows)."""


class Forward(NamedTuple):
    """What a forward pass computes on its way.

    Attributes:
        hidden: the residual before every layer and after the last, each (T, hidden).
        keys: of every layer, turned, in the order of the file, each (T, kv_heads, head_dim).
        values: of every layer, each (T, kv_heads, head_dim).
        logits: (T, vocabulary).
    """

    hidden: list[Array]
    keys: list[Array]
    values: list[Array]
    logits: Array


def logits(file: GGUFFile, token_ids: Sequence[int], context_tokens: int | None = None) -> Array:
    """Return next-token logits at every position, shape (T, vocabulary).

    Args:
        file: a model of an architecture that the engine supports.
        token_ids: T ids.
        context_tokens: of the session, which chooses LongRoPE's factors; T when not given.
    """
    return forward(file, token_ids, context_tokens).logits


def forward(
    file: GGUFFile,
    token_ids: Sequence[int],
    context_tokens: int | None = None,
    linear: Linear | None = None,
    stored: Callable[[Array], Array] = lambda x: x,
) -> Forward:
    """Run T tokens through a model, from an empty cache.

    Args:
        file: a model of an architecture that the engine supports.
        token_ids: T ids.
        context_tokens: of the session, which chooses LongRoPE's factors; T when not given.
        linear: how matrices are multiplied; exactly when not given. `dp4a.linear` is the kernels' way.
        stored: what becomes of keys and values in the cache; `as_float16` for a cache in half precision.
    """
    config = read_config(file, len(token_ids) if context_tokens is None else context_tokens)
    multiply = linear or _multiply
    tokens, width, kv_width = len(token_ids), config.heads * config.head_dim, config.kv_heads * config.head_dim

    def vector(name: str) -> Array:
        return file.float32(name).astype(np.float64)

    def project(x: Array, name: str) -> Array:
        y = multiply(x, file.raw(f"{name}.weight"), file.tensors[f"{name}.weight"].type)
        return y + vector(f"{name}.bias") if f"{name}.bias" in file.tensors else y

    factors = None if config.rope.factors is None else vector(config.rope.factors)
    table = rope_table(config.rope, factors, tokens)
    rotate = rotate_interleaved if config.rope.interleaved else rotate_halves

    embedding = decode(file.raw("token_embd.weight")[list(token_ids)], file.tensors["token_embd.weight"].type)
    hidden: list[Array] = [embedding.astype(np.float64)]
    keys, values = [], []
    for layer in range(config.layers):
        block = f"blk.{layer}"
        h = rms_norm(hidden[-1], vector(f"{block}.attn_norm.weight"), config.epsilon)
        if f"{block}.attn_qkv.weight" in file.tensors:
            q, k, v = np.split(project(h, f"{block}.attn_qkv"), (width, width + kv_width), axis=-1)
        else:
            q, k, v = (project(h, f"{block}.attn_{each}") for each in "qkv")
        q = rotate(q.reshape(tokens, config.heads, -1), table)  # (T, heads, head_dim)
        keys.append(stored(rotate(k.reshape(tokens, config.kv_heads, -1), table)))  # (T, kv_heads, head_dim)
        values.append(stored(v.reshape(tokens, config.kv_heads, -1)))
        mixed = attention(q, keys[-1], values[-1]).reshape(tokens, -1)  # (T, heads * head_dim)
        x = hidden[-1] + project(mixed, f"{block}.attn_output")
        h = rms_norm(x, vector(f"{block}.ffn_norm.weight"), config.epsilon)
        hidden.append(x + project(_inner(config, project, h, block), f"{block}.ffn_down"))
    head = "output" if "output.weight" in file.tensors else "token_embd"
    last = rms_norm(hidden[-1], vector("output_norm.weight"), config.epsilon)
    return Forward(hidden, keys, values, project(last, head))


def _inner(config: ModelConfig, project: Callable[[Array, str], Array], h: Array, block: str) -> Array:
    """Return the feed-forward network's inner state, (T, inner)."""
    if config.architecture == "phi3":  # gate above up, in one matrix
        gate, up = np.split(project(h, f"{block}.ffn_up"), 2, axis=-1)
    else:
        gate, up = project(h, f"{block}.ffn_gate"), project(h, f"{block}.ffn_up")
    return swiglu(gate, up)


def _multiply(x: Array, raw: NDArray[np.uint8], kind: str) -> Array:
    """Multiply with the numbers that the file's bytes mean."""
    return linear(x, decode(raw, kind))


def linear(x: ArrayLike, weights: ArrayLike, bias: ArrayLike | None = None) -> Array:
    """Return x, (..., columns), times weights, (rows, columns), plus bias, (rows,): shape (..., rows)."""
    y = np.asarray(x, np.float64) @ np.asarray(weights, np.float64).T
    return y if bias is None else y + np.asarray(bias, np.float64)


def rms_norm(x: ArrayLike, weight: ArrayLike, epsilon: float) -> Array:
    """Return x, (..., n), over its root mean square, times weight, (n,)."""
    x = np.asarray(x, np.float64)
    y: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * np.asarray(weight, np.float64)
    return y


def rope_table(rope: RopeConfig, factors: ArrayLike | None, positions: int) -> Array:
    """Return cosine and sine of every position and pair, shape (positions, dimensions / 2, 2)."""
    frequencies = rope.base ** (-np.arange(0, rope.dimensions, 2) / rope.dimensions)  # (dimensions / 2,)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors, np.float64)
    angles = np.outer(np.arange(positions) * rope.position_scale, frequencies)  # (positions, dimensions / 2)
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1) * rope.magnitude


def rotate_interleaved(x: ArrayLike, table: ArrayLike) -> Array:
    """Turn the pairs (2i, 2i + 1) of x, (T, heads, head_dim), by a table's rows, (T, dimensions / 2, 2)."""
    turn = _as_complex(np.asarray(table, np.float64))[:, None]  # (T, 1, dimensions / 2)
    y = np.array(x, np.float64)
    pairs = _as_complex(y[..., : 2 * turn.shape[-1]].reshape(*y.shape[:-1], -1, 2)) * turn
    y[..., 0 : 2 * turn.shape[-1] : 2] = pairs.real
    y[..., 1 : 2 * turn.shape[-1] : 2] = pairs.imag
    return y


def rotate_halves(x: ArrayLike, table: ArrayLike) -> Array:
    """Turn the pairs (i, i + dimensions / 2) of x, (T, heads, head_dim), by a table's rows (GPT-NeoX's layout)."""
    turn = _as_complex(np.asarray(table, np.float64))[:, None]  # (T, 1, dimensions / 2)
    half = turn.shape[-1]
    y = np.array(x, np.float64)
    pairs = (y[..., :half] + 1j * y[..., half : 2 * half]) * turn
    y[..., :half] = pairs.real
    y[..., half : 2 * half] = pairs.imag
    return y


def attention(q: ArrayLike, keys: ArrayLike, values: ArrayLike) -> Array:
    """Attend causally from T queries to a cache of S >= T positions, of which the queries are the last T.

    Args:
        q: (T, heads, head_dim).
        keys: (S, kv_heads, head_dim); heads / kv_heads queries share one.
        values: (S, kv_heads, head_dim).

    Returns:
        Shape (T, heads, head_dim).
    """
    q, keys, values = (np.asarray(each, np.float64) for each in (q, keys, values))
    tokens, heads, head_dim = q.shape
    group = heads // keys.shape[1]
    keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)  # (S, heads, head_dim)
    scores = np.einsum("thd,shd->hts", q, keys) / np.sqrt(head_dim)  # (heads, T, S)
    past = len(keys) - tokens
    visible = np.arange(len(keys)) <= past + np.arange(tokens)[:, None]  # (T, S)
    mixed: Array = np.einsum("hts,shd->thd", softmax(np.where(visible, scores, -np.inf)), values)
    return mixed


def softmax(x: ArrayLike) -> Array:
    """Return the distribution over the last axis."""
    x = np.asarray(x, np.float64)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = e / e.sum(axis=-1, keepdims=True)
    return y


def swiglu(gate: ArrayLike, up: ArrayLike) -> Array:
    """Return silu(gate) * up."""
    gate = np.asarray(gate, np.float64)
    # exp(-|g|) cannot overflow; both forms are g / (1 + exp(-g)).
    small = np.exp(-np.abs(gate))
    y: Array = gate * np.where(gate >= 0, 1.0, small) / (1 + small) * np.asarray(up, np.float64)
    return y


def as_float16(x: Array) -> Array:
    """Return x as a cache in half precision gives it back: rounded to the nearest, ties to even."""
    return x.astype(np.float32).astype(np.float16).astype(np.float64)


def _as_complex(pairs: Array) -> NDArray[np.complex128]:
    """Return (..., n) complex numbers from (..., n, 2)."""
    return pairs[..., 0] + 1j * pairs[..., 1]
