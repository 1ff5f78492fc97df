"""What single operations must give, computed in float64 from the operands that the engine has too."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from enginecmp.operands import layer_tensor, vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_VALUES = 1 << 22
"""Of a matrix that are converted to float64 at once: a head's matrix would double its size."""


def product(left: NDArray[np.floating], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return left (rows, inner) times right (inner, columns)."""
    import numpy as np

    inner, columns = right.shape
    step = max(1, _MOST_VALUES // inner)
    left = left.astype(np.float64)
    parts = [left @ right[:, start : start + step].astype(np.float64) for start in range(0, columns, step)]
    return np.concatenate(parts, axis=1)


def elementwise(parameters: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return what the operation "elementwise" must give, (rows, length).

    Args:
        parameters: its parameters, as `cmp_operation` has them.
    """
    import numpy as np

    a, b = (array.astype(np.float64) for array in vectors(*(parameters[name] for name in ("rows", "length", "seed"))))
    function = parameters["function"]
    if function == "rope":
        heads = a.reshape(len(a), -1, parameters["head_dim"])
        return _rope(heads, parameters["start"], parameters["rope_base"]).reshape(a.shape)
    if function == "rms_norm":
        return _rms_norm(a, b[0], parameters["epsilon"])
    return {"add": lambda: a + b, "silu_mul": lambda: _silu(a) * b, "softmax": lambda: _softmax(a)}[function]()


def layer(parameters: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return what the operation "layer" must give, (rows, width): the hidden states behind the layer.

    Kept for the launches that ask the same: every one gets the same operands, and a layer takes seconds.

    Args:
        parameters: its parameters, as `cmp_operation` has them.
    """
    return _layer(tuple(sorted(parameters.items())))


@functools.lru_cache(maxsize=8)
def _layer(items: tuple[tuple[str, Any], ...]) -> NDArray[np.float64]:
    """Return the output of a pre-norm layer.

    Touvron et al. 2023, arXiv:2302.13971, section 2.2; grouped keys and values: Ainslie et al. 2023, arXiv:2305.13245.
    """
    import numpy as np

    parameters = dict(items)
    rows, past, heads, head_dim = (parameters[name] for name in ("rows", "past", "heads", "head_dim"))
    base, epsilon = parameters["rope_base"], parameters["epsilon"]

    def tensor(name: str) -> NDArray[np.float64]:
        return layer_tensor(name, parameters).astype(np.float64)

    def linear(x: NDArray[np.float64], name: str) -> NDArray[np.float64]:
        return product(x, layer_tensor(name, parameters).T)

    def split(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.reshape(rows, -1, head_dim)

    x = tensor("x")
    normed = _rms_norm(x, tensor("attn_norm"), epsilon)
    q = _rope(split(linear(normed, "attn_q")), past, base)  # (rows, heads, head_dim)
    k = np.concatenate((tensor("keys"), _rope(split(linear(normed, "attn_k")), past, base)))  # (S, kv_heads, head_dim)
    v = np.concatenate((tensor("values"), split(linear(normed, "attn_v"))))
    k, v = (np.repeat(part, heads // parameters["kv_heads"], axis=1) for part in (k, v))  # (S, heads, head_dim)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(head_dim)  # (heads, rows, S)
    later = np.arange(past + rows)[None, :] > np.arange(past, past + rows)[:, None]  # (rows, S)
    scores[:, later] = -np.inf
    mixed = np.einsum("hts,shd->thd", _softmax(scores), v).reshape(rows, -1)
    x = x + linear(mixed, "attn_output")
    normed = _rms_norm(x, tensor("ffn_norm"), epsilon)
    out = x + linear(_silu(linear(normed, "ffn_gate")) * linear(normed, "ffn_up"), "ffn_down")
    out.flags.writeable = False
    return out


def _rms_norm(x: NDArray[np.float64], weight: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """Return each row over its root mean square (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""
    import numpy as np

    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * weight)


def _silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return x times its logistic function (Shazeer 2020, arXiv:2002.05202, section 2: Swish with beta 1)."""
    import numpy as np

    return np.asarray(x / (1 + np.exp(-x)))


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _rope(x: NDArray[np.float64], start: int, base: float) -> NDArray[np.float64]:
    """Return x, (rows, heads, head_dim), turned by positions from `start` on.

    Su et al. 2021, arXiv:2104.09864, eq. 34, with pairs as GPT-NeoX has them.
    """
    import numpy as np

    half = x.shape[2] // 2
    frequencies = base ** (-np.arange(half) / half)
    angles = np.outer(start + np.arange(len(x)), frequencies)[:, None, :]  # (rows, 1, half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate((a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)), axis=-1)
