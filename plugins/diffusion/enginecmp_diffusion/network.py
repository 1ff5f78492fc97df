"""LLaDA's architecture at a small size, for training: llama's blocks without a causal mask (arXiv:2502.09992).

Parameter names are the GGUF tensor names, so that a state dict is what the file holds.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of the network.

    Attributes:
        layers, width, heads, feed_forward: the transformer's; heads are width / heads wide.
        vocabulary: token ids, the mask among them.
        context: longest text in tokens that the file promises.
        rope_base: theta of a head's first pair; pairs are (2i, 2i + 1).
        epsilon: of the norms.
    """

    layers: int = 4
    width: int = 192
    heads: int = 6
    feed_forward: int = 512
    vocabulary: int = 512
    context: int = 512
    rope_base: float = 10_000.0
    epsilon: float = 1e-5


class Block(nn.Module):  # type: ignore[misc] # torch is untyped here
    """One pre-norm layer that attends in both directions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, inner = shape.width, shape.feed_forward
        self.heads = shape.heads
        self.attn_norm = nn.RMSNorm(width, shape.epsilon)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (_linear(width, width) for _ in range(4))
        self.ffn_norm = nn.RMSNorm(width, shape.epsilon)
        self.ffn_gate, self.ffn_up, self.ffn_down = _linear(width, inner), _linear(width, inner), _linear(inner, width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the next hidden states from x, both (B, T, width)."""
        batch, tokens, width = x.shape
        y = self.attn_norm(x)
        q, k, v = (
            part(y).view(batch, tokens, self.heads, -1).transpose(1, 2)  # (B, heads, T, head_dim)
            for part in (self.attn_q, self.attn_k, self.attn_v)
        )
        seen = F.scaled_dot_product_attention(_turned(q, cos, sin), _turned(k, cos, sin), v)
        x = x + self.attn_output(seen.transpose(1, 2).reshape(batch, tokens, width))
        y = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


class Network(nn.Module):  # type: ignore[misc] # torch is untyped here
    """The whole model; the head is the embedding.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocabulary, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.epsilon)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                spread = 0.02 / (2 * shape.layers) ** 0.5 if name.endswith(("output.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=spread)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of what is at every position, (B, T, vocabulary), from ids (B, T), masks among them."""
        head_dim = self.shape.width // self.shape.heads
        frequencies = self.shape.rope_base ** (-torch.arange(0, head_dim, 2) / head_dim)  # (head_dim / 2,)
        angles = torch.outer(torch.arange(ids.shape[1]), frequencies)  # (T, head_dim / 2)
        x = self.token_embd(ids)  # (B, T, width)
        for block in self.blk:
            x = block(x, angles.cos(), angles.sin())
        return F.linear(self.output_norm(x), self.token_embd.weight)


def _linear(inputs: int, outputs: int) -> Any:
    return nn.Linear(inputs, outputs, bias=False)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x, (B, heads, T, head_dim), its pairs turned by their positions."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
