"""The oracle of engine tests: a transformer's forward pass written out in float64 NumPy, one prompt at a time.

Sources: Radford et al. 2019 (GPT-2) and Touvron et al. 2023 (arXiv:2302.13971) for the blocks; Su et al. 2021
(arXiv:2104.09864), eq. 34, for the rotation, of neighbours (llama) or of halves (GPT-NeoX); Ainslie et al. 2023
(arXiv:2305.13245) for grouped heads; Shazeer 2020 (arXiv:2002.05202), eq. 6, and Hendrycks & Gimpel 2016
(arXiv:1606.08415) for the feed-forward networks; Nie et al. 2025 (arXiv:2502.09992) for attention in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp.models.diffusion import AUTOREGRESSIVE
from enginecmp.models.gguf_file import GGUFFile, read_gguf

Array = NDArray[np.float64]


def logits(path: str, token_ids: Sequence[int]) -> Array:
    """Return next-token logits at every position, shape (T, vocabulary); of a diffusion model, those of what is there.

    Args:
        path: a GGUF file of llama, qwen2, phi3, gpt2, llada or dream. Its tensors may be of any type that gguf-py can
            dequantize; rotary embeddings of a part of a head, their base, linear scaling and `rope_freqs` are followed,
            and so is a sliding window.
        token_ids: T ids.
    """
    model = _Model(read_gguf(path))
    x = model.weight("token_embd.weight")[list(token_ids)]  # (T, hidden)
    if "position_embd.weight" in model.file.tensors:
        x = x + model.weight("position_embd.weight")[: len(x)]
    for layer in range(model.number("block_count")):
        x = x + model.attention(model.norm(x, f"blk.{layer}.attn_norm"), f"blk.{layer}")
        x = x + model.feed_forward(model.norm(x, f"blk.{layer}.ffn_norm"), f"blk.{layer}")
    head = "output" if "output.weight" in model.file.tensors else "token_embd"
    rows = model.linear(model.norm(x, "output_norm"), head)
    if model.diffuses and model.file.metadata.get("diffusion.shift_logits", True):
        rows = np.concatenate([rows[:1], rows[:-1]])  # what is at a position is told one position before it
    return rows


class _Model:
    """One file's tensors and numbers, and the parts of its blocks; x is (T, hidden) throughout."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.metadata["general.architecture"]
        self.diffuses = self.architecture in AUTOREGRESSIVE

    def weight(self, name: str) -> Array:
        return self.file.float32(name).astype(np.float64)

    def number(self, key: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.architecture}.{key}", default)

    def linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self.weight(f"{name}.weight").T
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.file.tensors else y

    def norm(self, x: Array, name: str) -> Array:
        if f"{name}.bias" in self.file.tensors:
            x = x - x.mean(axis=-1, keepdims=True)
        epsilon = self.number("attention.layer_norm_rms_epsilon") or self.number("attention.layer_norm_epsilon")
        y: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + epsilon) * self.weight(f"{name}.weight")
        return y + self.weight(f"{name}.bias") if f"{name}.bias" in self.file.tensors else y

    def rope(self, x: Array) -> Array:  # (T, heads, head_dim)
        if self.architecture == "gpt2":
            return x
        width = self.number("rope.dimension_count", x.shape[-1])
        frequency = self.number("rope.freq_base", 10000.0) ** (-np.arange(0, width, 2) / width)  # (width / 2,)
        if "rope_freqs.weight" in self.file.tensors:
            frequency = frequency / self.weight("rope_freqs.weight")
        if self.number("rope.scaling.type") == "linear":
            frequency = frequency / self.number("rope.scaling.factor")
        turn = np.exp(1j * np.outer(np.arange(len(x)), frequency))[:, None, :]  # (T, 1, width / 2)
        y = x.copy()
        if self.architecture in ("llama", "llada"):
            first, second = slice(0, width, 2), slice(1, width, 2)
        else:
            first, second = slice(0, width // 2), slice(width // 2, width)
        turned = (x[..., first] + 1j * x[..., second]) * turn
        y[..., first], y[..., second] = turned.real, turned.imag
        return y

    def attention(self, x: Array, block: str) -> Array:
        tokens, heads, kv_heads = len(x), self.number("attention.head_count"), self.number("attention.head_count_kv")
        width = self.number("attention.key_length") or self.number("embedding_length") // heads
        if f"{block}.attn_qkv.weight" in self.file.tensors:
            split = (heads * width, (heads + kv_heads) * width)
            q, k, v = np.split(self.linear(x, f"{block}.attn_qkv"), split, axis=-1)
        else:
            q, k, v = (self.linear(x, f"{block}.attn_{each}") for each in "qkv")
        q, k = self.rope(q.reshape(tokens, heads, width)), self.rope(k.reshape(tokens, kv_heads, width))
        k, v = (np.repeat(a, heads // kv_heads, axis=1) for a in (k, v.reshape(tokens, kv_heads, width)))
        # Of the keys up to its own place, a query sees the last `sliding_window`.
        seen = np.tri(tokens, dtype=bool) & ~np.tri(
            tokens, k=-self.number("attention.sliding_window", tokens), dtype=bool
        )
        seen |= self.diffuses  # in both directions
        scores = np.where(seen, np.einsum("qhw,khw->hqk", q, k) / np.sqrt(width), -np.inf)  # (heads, T, T)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return self.linear(np.einsum("hqk,khw->qhw", weights, v).reshape(tokens, -1), f"{block}.attn_output")

    def feed_forward(self, x: Array, block: str) -> Array:
        if self.architecture == "gpt2":
            y = self.linear(x, f"{block}.ffn_up")
            inner = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        else:
            if self.architecture == "phi3":  # gate above up, in one matrix
                gate, up = np.split(self.linear(x, f"{block}.ffn_up"), 2, axis=-1)
            else:
                gate, up = self.linear(x, f"{block}.ffn_gate"), self.linear(x, f"{block}.ffn_up")
            inner = gate / (1 + np.exp(-gate)) * up
        return self.linear(inner, f"{block}.ffn_down")
