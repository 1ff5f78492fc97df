"""A decoder-only transformer, eager and plain: one Linear a projection, matmul + softmax, nothing fused.

Parameter names are the GGUF tensor names, with two levels added so that attention and feed-forward network are
modules of their own: "blk.0.attention.attn_q.weight" is the tensor "blk.0.attn_q.weight" (`gguf_name`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config import ModelConfig, RopeConfig

KVCache = list[tuple[Tensor, Tensor] | None]
"""Keys and values of every layer, each (B, kv_heads, S, head_dim); None before the first token."""


def gguf_name(parameter: str) -> str:
    """Return the GGUF tensor name of a parameter of `Transformer`."""
    return parameter.replace(".attention.", ".").replace(".ffn.", ".")


class RMSNorm(nn.Module):  # type: ignore[misc] # torch is untyped here
    """Root mean square norm (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (B, T, width), over its root mean square."""
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * y.to(x.dtype)


class Rope(nn.Module):  # type: ignore[misc] # torch is untyped here
    """Rotary position embedding from a table of every position the session can hold.

    Args:
        config: base, dimensions, layout and scaling.
        positions: length of the table.
        factors: (dimensions / 2,) values that divide the frequencies, or None.
    """

    def __init__(self, config: RopeConfig, positions: int, factors: Tensor | None) -> None:
        super().__init__()
        self.dimensions = config.dimensions
        self.interleaved = config.interleaved
        # Angles in float64: position * frequency loses 1e-4 rad at position 4096 in float32, and the reference
        # must not be the engine that is off.
        exponents = torch.arange(0, config.dimensions, 2, dtype=torch.float64, device="cpu") / config.dimensions
        frequencies = config.position_scale * config.base**-exponents  # (dimensions / 2,)
        if factors is not None:
            frequencies = frequencies / factors.double()
        angles = torch.outer(torch.arange(positions, dtype=torch.float64, device="cpu"), frequencies)
        self.register_buffer("cos", (angles.cos() * config.magnitude).float(), persistent=False)  # (positions, d / 2)
        self.register_buffer("sin", (angles.sin() * config.magnitude).float(), persistent=False)

    def forward(self, x: Tensor, past: int) -> Tensor:
        """Return x, (B, heads, T, head_dim), turned by its positions past .. past + T - 1."""
        cos = self.cos[past : past + x.shape[2]].to(x.dtype)  # (T, d / 2)
        sin = self.sin[past : past + x.shape[2]].to(x.dtype)
        turned, passed = x[..., : self.dimensions], x[..., self.dimensions :]
        if self.interleaved:
            a, b = turned[..., 0::2], turned[..., 1::2]
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = turned.chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((turned, passed), dim=-1)  # (B, heads, T, head_dim)


class Attention(nn.Module):  # type: ignore[misc] # torch is untyped here
    """Multi-head attention with grouped keys and values, as matmul, mask, softmax, matmul."""

    def __init__(self, config: ModelConfig, rope: Rope | None, layer: int, tensors: Collection[str]) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.rope = rope
        prefix = f"blk.{layer}"
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.split = (q, kv, kv)
        self.fused = f"{prefix}.attn_qkv.weight" in tensors
        if self.fused:
            self.attn_qkv = _linear(config.width, q + 2 * kv, f"{prefix}.attn_qkv", tensors)
        else:
            self.attn_q = _linear(config.width, q, f"{prefix}.attn_q", tensors)
            self.attn_k = _linear(config.width, kv, f"{prefix}.attn_k", tensors)
            self.attn_v = _linear(config.width, kv, f"{prefix}.attn_v", tensors)
        self.attn_output = _linear(q, config.width, f"{prefix}.attn_output", tensors)

    def forward(self, x: Tensor, cache: KVCache | None, past: int) -> Tensor:
        """Attend from x, (B, T, width), to the cache and what is behind; the cache grows by T positions.

        Without a cache every position attends to all of x.
        """
        batch, tokens = x.shape[:2]
        if self.fused:
            q, k, v = self.attn_qkv(x).split(self.split, dim=-1)
        else:
            q, k, v = self.attn_q(x), self.attn_k(x), self.attn_v(x)
        q = q.view(batch, tokens, self.heads, self.head_dim).transpose(1, 2)  # (B, heads, T, head_dim)
        k = k.view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)  # (B, kv_heads, T, head_dim)
        v = v.view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        if self.rope is not None:
            q, k = self.rope(q, past), self.rope(k, past)
        if cache is not None:
            before = cache[self.layer]
            if before is not None:
                k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)  # (B, kv_heads, S, head_dim)
            cache[self.layer] = (k, v)

        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)  # (B, heads, S, head_dim)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)  # (B, heads, T, S)
        if cache is not None and tokens > 1:
            mask = torch.full(scores.shape[2:], -math.inf, device=x.device, dtype=x.dtype).triu(past + 1)
            scores = scores + mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(x.dtype)
        out = (weights @ v).transpose(1, 2).reshape(batch, tokens, -1)  # (B, T, heads * head_dim)
        return self.attn_output(out)


class FeedForward(nn.Module):  # type: ignore[misc] # torch is untyped here
    """SwiGLU (Shazeer 2020, arXiv:2002.05202, eq. 6), its two inner projections fused for phi3; GELU for gpt2."""

    def __init__(self, config: ModelConfig, layer: int, tensors: Collection[str]) -> None:
        super().__init__()
        self.gated = config.architecture != "gpt2"
        self.fused = config.architecture == "phi3"
        prefix, inner = f"blk.{layer}", config.feed_forward
        if self.gated and not self.fused:
            self.ffn_gate = _linear(config.width, inner, f"{prefix}.ffn_gate", tensors)
        self.ffn_up = _linear(config.width, inner * (2 if self.fused else 1), f"{prefix}.ffn_up", tensors)
        self.ffn_down = _linear(inner, config.width, f"{prefix}.ffn_down", tensors)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's answer to x, both (B, T, width)."""
        if not self.gated:
            # The tanh form is the one GPT-2 was trained with (Hendrycks & Gimpel 2016, arXiv:1606.08415).
            return self.ffn_down(F.gelu(self.ffn_up(x), approximate="tanh"))
        gate, up = self.ffn_up(x).chunk(2, dim=-1) if self.fused else (self.ffn_gate(x), self.ffn_up(x))
        return self.ffn_down(F.silu(gate) * up)


class Block(nn.Module):  # type: ignore[misc] # torch is untyped here
    """One pre-norm layer."""

    def __init__(self, config: ModelConfig, rope: Rope | None, layer: int, tensors: Collection[str]) -> None:
        super().__init__()
        self.attn_norm = _norm(config)
        self.attention = Attention(config, rope, layer, tensors)
        self.ffn_norm = _norm(config)
        self.ffn = FeedForward(config, layer, tensors)

    def forward(self, x: Tensor, cache: KVCache | None, past: int) -> Tensor:
        """Return the next hidden states from x, both (B, T, width)."""
        x = x + self.attention(self.attn_norm(x), cache, past)
        return x + self.ffn(self.ffn_norm(x))


class Transformer(nn.Module):  # type: ignore[misc] # torch is untyped here
    """A whole model without weights: build it on the meta device, then load a state dict.

    Args:
        config: shape and constants.
        positions: most tokens that a session holds.
        rope_factors: the tensor that `config.rope.factors` names, or None.
        tensors: names in the file; they decide where a projection has a bias, or q, k and v share one matrix.
    """

    def __init__(
        self, config: ModelConfig, positions: int, rope_factors: Tensor | None, tensors: Collection[str]
    ) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary, config.width)
        self.learned_positions = config.rope is None
        if self.learned_positions:
            self.position_embd = nn.Embedding(config.context_length, config.width)
        rope = Rope(config.rope, positions, rope_factors) if config.rope is not None else None
        self.blk = nn.ModuleList(Block(config, rope, layer, tensors) for layer in range(config.layers))
        self.output_norm = _norm(config)
        self.output = _linear(config.width, config.vocabulary, "output", tensors)

    def forward(self, ids: Tensor, cache: KVCache, past: int, last_only: bool) -> Tensor:
        """Run T tokens through the model.

        Args:
            ids: (1, T) token ids.
            cache: one entry a layer, holding `past` positions; grows by T.
            past: tokens already in the cache.
            last_only: compute logits of the last position only.

        Returns:
            Logits, (1, T or 1, vocabulary).
        """
        x = self._hidden(ids, cache, past)
        if last_only:
            x = x[:, -1:]  # (1, 1, width)
        return self.output(self.output_norm(x))

    def predict(self, ids: Tensor, sequences: Tensor, positions: Tensor) -> Tensor:
        """Run whole sequences in which every position sees all others, and return the logits of some positions.

        Args:
            ids: (B, T) token ids, masks among them.
            sequences: (M,) rows of `ids`.
            positions: (M,) columns of it; of a model with shifted logits, each is told one position before.

        Returns:
            Logits, (M, vocabulary).
        """
        assert self.config.diffusion is not None
        if self.config.diffusion.shifted:
            positions = (positions - 1).clamp(min=0)
        x = self._hidden(ids, None, 0)[sequences, positions]  # (M, width)
        return self.output(self.output_norm(x))

    def _hidden(self, ids: Tensor, cache: KVCache | None, past: int) -> Tensor:
        x = self.token_embd(ids)  # (B, T, width)
        if self.learned_positions:
            x = x + self.position_embd(torch.arange(past, past + ids.shape[1], device=ids.device))
        for block in self.blk:
            x = block(x, cache, past)
        return x


def _linear(inputs: int, outputs: int, name: str, tensors: Collection[str]) -> Any:
    return nn.Linear(inputs, outputs, bias=f"{name}.bias" in tensors)


def _norm(config: ModelConfig) -> Any:
    if config.architecture == "gpt2":
        return nn.LayerNorm(config.width, eps=config.epsilon)
    return RMSNorm(config.width, config.epsilon)
