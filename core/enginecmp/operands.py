"""What single operations are given: the same in every engine, which compares or computes with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def matrices(rows: int, inner: int, columns: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two float32 matrices of standard normal values, (rows, inner) and (inner, columns).

    Args:
        rows: of the left one; tokens of a batch.
        inner: what is summed over.
        columns: of the right one; outputs of a layer.
        seed: the same one gives the same matrices, in every engine and on every machine.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, inner), dtype=np.float32)
    return left, random.standard_normal((inner, columns), dtype=np.float32)


def vectors(rows: int, length: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two float32 arrays of standard normal values, both (rows, length).

    Args:
        rows: tokens of a batch, or rows of scores.
        length: values of a row.
        seed: the same one gives the same arrays, in every engine and on every machine.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    first = random.standard_normal((rows, length), dtype=np.float32)
    return first, random.standard_normal((rows, length), dtype=np.float32)


def layer_shapes(parameters: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of all that a transformer layer computes with, matrices as (outputs, inputs).

    Args:
        parameters: of the operation "layer": `rows`, `past`, `width`, `heads`, `kv_heads`, `head_dim`, `feed_forward`.

    Returns:
        Weights under their GGUF names without "blk.0." and ".weight", and `x`, (rows, width), the layer's input;
        `keys` and `values`, (past, kv_heads, head_dim), what the cache holds: keys are turned already.
    """
    rows, past, width, heads, kv_heads, head_dim, feed_forward = (
        parameters[name] for name in ("rows", "past", "width", "heads", "kv_heads", "head_dim", "feed_forward")
    )
    return {
        "attn_norm": (width,),
        "attn_q": (heads * head_dim, width),
        "attn_k": (kv_heads * head_dim, width),
        "attn_v": (kv_heads * head_dim, width),
        "attn_output": (width, heads * head_dim),
        "ffn_norm": (width,),
        "ffn_gate": (feed_forward, width),
        "ffn_up": (feed_forward, width),
        "ffn_down": (width, feed_forward),
        "x": (rows, width),
        "keys": (past, kv_heads, head_dim),
        "values": (past, kv_heads, head_dim),
    }


def layer_tensor(name: str, parameters: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return one of the arrays of a transformer layer, uniform float32 values around 0 (norms: 0.5 to 1.5).

    One at a time, so that nobody must hold the layer twice. Variance is 1, that of a matrix 1 / inputs: what goes
    through the layer keeps its size (LeCun et al. 1998, Efficient BackProp, eq. 16).

    Args:
        name: a key of `layer_shapes`.
        parameters: as for `layer_shapes`, and `seed`: the same one gives the same arrays, in every engine and on every
            machine.
    """
    import numpy as np

    shapes = layer_shapes(parameters)
    shape = shapes[name]
    values = np.random.default_rng((parameters["seed"], list(shapes).index(name))).random(shape, dtype=np.float32)
    if len(shape) == 1:
        return values + np.float32(0.5)
    values -= np.float32(0.5)
    values *= np.float32(math.sqrt(12 / shape[1]) if len(shape) == 2 and name != "x" else math.sqrt(12))
    return values
