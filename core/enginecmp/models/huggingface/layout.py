"""Names, shapes and order of weights in a Hugging Face folder and in a GGUF file, for each architecture.

Sources: transformers' modelling files (module names), llama.cpp's conversion (order of rows).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

import msgspec

from enginecmp.models.huggingface.rope import Rope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt2")
"""GGUF architectures that can be converted, both ways."""

Change = Literal["same", "query", "key", "transposed"]
"""How rows are stored: as they are; as pairs for the rotary embedding (llama's q and k); as transformers' Conv1D."""

_BLOCKS: dict[str, dict[str, tuple[str, Change]]] = {
    "llama": {
        "attn_norm": ("input_layernorm", "same"),
        "attn_q": ("self_attn.q_proj", "query"),
        "attn_k": ("self_attn.k_proj", "key"),
        "attn_v": ("self_attn.v_proj", "same"),
        "attn_output": ("self_attn.o_proj", "same"),
        "ffn_norm": ("post_attention_layernorm", "same"),
        "ffn_gate": ("mlp.gate_proj", "same"),
        "ffn_up": ("mlp.up_proj", "same"),
        "ffn_down": ("mlp.down_proj", "same"),
    },
    "phi3": {
        "attn_norm": ("input_layernorm", "same"),
        "attn_qkv": ("self_attn.qkv_proj", "same"),
        "attn_output": ("self_attn.o_proj", "same"),
        "ffn_norm": ("post_attention_layernorm", "same"),
        "ffn_up": ("mlp.gate_up_proj", "same"),
        "ffn_down": ("mlp.down_proj", "same"),
    },
    "gpt2": {
        "attn_norm": ("ln_1", "same"),
        "attn_qkv": ("attn.c_attn", "transposed"),
        "attn_output": ("attn.c_proj", "transposed"),
        "ffn_norm": ("ln_2", "same"),
        "ffn_up": ("mlp.c_fc", "transposed"),
        "ffn_down": ("mlp.c_proj", "transposed"),
    },
}
_BLOCKS["qwen2"] = {
    gguf: (hf, "same" if change in ("query", "key") else change) for gguf, (hf, change) in _BLOCKS["llama"].items()
}
_OUTSIDE_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class HFShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's numbers say, wherever they were read.

    Attributes:
        architecture: GGUF architecture.
        layers, hidden, heads, kv_heads, head_dim, feed_forward, context: the transformer's shape.
        epsilon: of the norms.
        window: positions that a token may look back on, itself included; 0 means all of them.
        rope: rotary embedding; None where positions are learned.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    context: int
    epsilon: float
    window: int
    rope: Rope | None


class Weight(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor under both its names.

    Attributes:
        gguf: e.g. "blk.0.attn_q.weight".
        hf: e.g. "model.layers.0.self_attn.q_proj.weight".
        shape: in GGUF's order of rows.
        change: how transformers' order of rows becomes GGUF's, and back.
    """

    gguf: str
    hf: str
    shape: tuple[int, ...]
    change: Change

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape as transformers stores it."""
        return self.shape[::-1] if self.change == "transposed" else self.shape


def weights_of(shape: HFShape, vocabulary: int, biases: Collection[str], tied: bool) -> Iterator[Weight]:
    """Yield every tensor of a model.

    Args:
        shape: of the model.
        vocabulary: rows of the embedding.
        biases: GGUF names of the projections that have one, e.g. {"attn_q"}; GPT-2's all have.
        tied: the head is the embedding.
    """
    gpt2 = shape.architecture == "gpt2"
    outside = {"token_embd": vocabulary, "position_embd": shape.context, "output_norm": 0, "output": vocabulary}
    for gguf, hf in (_OUTSIDE_GPT2 if gpt2 else _OUTSIDE).items():
        if gguf == "output" and tied:
            continue
        extents = (outside[gguf], shape.hidden) if outside[gguf] else (shape.hidden,)
        yield Weight(gguf=f"{gguf}.weight", hf=f"{hf}.weight", shape=extents, change="same")
        if gpt2 and gguf == "output_norm":
            yield Weight(gguf=f"{gguf}.bias", hf=f"{hf}.bias", shape=extents, change="same")
    root = "transformer.h" if gpt2 else "model.layers"
    inside = _shapes(shape)
    for layer in range(shape.layers):
        for gguf, (hf, change) in _BLOCKS[shape.architecture].items():
            here, there = f"blk.{layer}.{gguf}", f"{root}.{layer}.{hf}"
            yield Weight(gguf=f"{here}.weight", hf=f"{there}.weight", shape=inside[gguf], change=change)
            if gpt2 or gguf in biases:
                # A bias has no columns to exchange with its rows.
                moved: Change = "same" if change == "transposed" else change
                yield Weight(gguf=f"{here}.bias", hf=f"{there}.bias", shape=inside[gguf][:1], change=moved)


def _shapes(shape: HFShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every matrix and norm of a block, by its GGUF name."""
    hidden, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # phi3 keeps gate and up in one matrix, gate first.
    up = 2 * shape.feed_forward if shape.architecture == "phi3" else shape.feed_forward
    return {
        "attn_norm": (hidden,),
        "attn_q": (q, hidden),
        "attn_k": (kv, hidden),
        "attn_v": (kv, hidden),
        "attn_qkv": (q + 2 * kv, hidden),
        "attn_output": (hidden, q),
        "ffn_norm": (hidden,),
        "ffn_gate": (shape.feed_forward, hidden),
        "ffn_up": (up, hidden),
        "ffn_down": (hidden, shape.feed_forward),
    }


def to_gguf_order(weights: NDArray[np.generic], change: Change, heads: int, kv_heads: int) -> NDArray[np.generic]:
    """Return weights in GGUF's order of rows, shape (rows, columns) or (rows,).

    A rotary pair lies half a head apart in transformers and side by side in GGUF's llama.
    """
    return _reordered(weights, change, heads, kv_heads, (2, -1))


def to_hf_order(weights: NDArray[np.generic], change: Change, heads: int, kv_heads: int) -> NDArray[np.generic]:
    """Return weights in transformers' order of rows: the inverse of `to_gguf_order`."""
    return _reordered(weights, change, heads, kv_heads, (-1, 2))


def _reordered(
    weights: NDArray[np.generic], change: Change, heads: int, kv_heads: int, pairs: tuple[int, int]
) -> NDArray[np.generic]:
    """Return weights with the two axes exchanged that the rows of each head fall into: halves of it, or pairs."""
    if change == "transposed":
        return weights.T
    if change == "same":
        return weights
    count = heads if change == "query" else kv_heads
    columns = weights.shape[1:]
    return weights.reshape(count, *pairs, *columns).swapaxes(1, 2).reshape(weights.shape)
