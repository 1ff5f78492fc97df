"""A plain Llama in PyTorch for comparison: fused projections, a cache of fixed size, PyTorch's own attention.

It reads the same file. Weights are bfloat16, or int8 with one scale a row; sums are what the library makes of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from enginecmp import GGUFFile

from ..config import ModelConfig
from ..oracle.reference import rope_table

BLOCK_BYTES = 34


class Linear(nn.Module):  # type: ignore[misc] # torch is untyped here
    """x times a matrix, (rows, columns); with `int8`, rounded to 8 bits with a scale a row."""

    def __init__(self, weight: Tensor, int8: bool) -> None:
        super().__init__()
        self.int8 = int8
        if int8:
            scale = weight.float().abs().amax(dim=1) / 127  # (rows,)
            self.register_buffer("weight", (weight.float() / scale[:, None]).round().to(torch.int8))
            self.register_buffer("scale", scale.to(weight.dtype))
        else:
            self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., rows)."""
        if self.int8:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale
        return F.linear(x, self.weight)


class Layer(nn.Module):  # type: ignore[misc] # torch is untyped here
    """One layer with its keys and values of every position."""

    def __init__(self, config: ModelConfig, tensors: dict[str, Tensor], positions: int, int8: bool) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(torch.cat([tensors[f"attn_{each}"] for each in "qkv"]), int8)
        self.output = Linear(tensors["attn_output"], int8)
        self.gate_up = Linear(torch.cat([tensors["ffn_gate"], tensors["ffn_up"]]), int8)
        self.down = Linear(tensors["ffn_down"], int8)
        self.register_buffer("attention_norm", tensors["attn_norm"])
        self.register_buffer("ffn_norm", tensors["ffn_norm"])
        shape = (1, config.kv_heads, positions, config.head_dim)
        like = tensors["attn_output"]
        self.register_buffer("keys", torch.zeros(shape, dtype=like.dtype, device=like.device))
        self.register_buffer("values", torch.zeros(shape, dtype=like.dtype, device=like.device))

    def forward(self, x: Tensor, turn: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        """Return the next hidden states, (1, T, hidden)."""
        config, tokens = self.config, x.shape[1]
        h = F.rms_norm(x, (config.hidden,), self.attention_norm, config.epsilon)
        q, k, v = self.qkv(h).view(1, tokens, -1, config.head_dim).split([config.heads, *[config.kv_heads] * 2], dim=2)
        q, k = (rotate(each, turn).transpose(1, 2) for each in (q, k))  # (1, heads, T, head_dim)
        v = v.transpose(1, 2)
        self.keys.index_copy_(2, position, k)
        self.values.index_copy_(2, position, v)
        if mask is None:  # a prompt from the beginning
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        else:
            # Query heads that share keys side by side: keys and values are read once and never repeated.
            q = q.reshape(1, config.kv_heads, -1, config.head_dim)  # (1, kv_heads, group, head_dim)
            scores = q @ self.keys.transpose(2, 3) / math.sqrt(config.head_dim)  # (1, kv_heads, group, positions)
            weights = scores.float().masked_fill(~mask, -math.inf).softmax(dim=-1).to(x.dtype)
            mixed = weights @ self.values
        x = x + self.output(mixed.reshape(1, tokens, -1))
        h = F.rms_norm(x, (config.hidden,), self.ffn_norm, config.epsilon)
        gate, up = self.gate_up(h).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):  # type: ignore[misc] # torch is untyped here
    """The model.

    Args:
        file: of architecture llama.
        config: what it says.
        positions: of the cache.
        device: "cuda" or "cpu".
        int8: matrices of the layers and the head in 8 bits.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig, positions: int, device: str, int8: bool = False) -> None:
        super().__init__()

        def get(name: str) -> Tensor:
            return read(file, name, device).to(torch.bfloat16)

        self.config = config
        names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_norm", "ffn_norm")
        self.layers = nn.ModuleList(
            Layer(config, {name: get(f"blk.{number}.{name}.weight") for name in names}, positions, int8)
            for number in range(config.layers)
        )
        self.register_buffer("embedding", get("token_embd.weight"))
        tied = "output.weight" not in file.tensors
        self.head = Linear(self.embedding if tied else get("output.weight"), int8)
        self.register_buffer("output_norm", get("output_norm.weight"))
        factors = None if config.rope.factors is None else file.float32(config.rope.factors)
        turns = torch.from_numpy(rope_table(config.rope, factors, positions).astype(np.float32))
        self.register_buffer("turns", turns.to(device))  # (positions, dimensions / 2, 2)
        self.register_buffer("places", torch.arange(positions, device=device))

    def prefill(self, ids: Tensor) -> Tensor:
        """Run a prompt, (1, T), from the beginning; return the next id, (1, 1)."""
        position = self.places[: ids.shape[1]]
        return self._run(ids, position, None)

    def decode(self, ids: Tensor, position: Tensor) -> Tensor:
        """Run one id, (1, 1), at a position, (1,); return the next one."""
        mask = (self.places <= position)[None, None, None]  # (1, 1, 1, positions)
        return self._run(ids, position, mask)

    def _run(self, ids: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        x = F.embedding(ids, self.embedding)
        turn = self.turns[position]  # (T, dimensions / 2, 2)
        for layer in self.layers:
            x = layer(x, turn, position, mask)
        x = F.rms_norm(x[:, -1:], (self.config.hidden,), self.output_norm, self.config.epsilon)
        return self.head(x).argmax(dim=-1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of x, (1, T, heads, head_dim)."""
    cosine, sine = (turn[..., each].to(x.dtype)[None, :, None] for each in (0, 1))  # (1, T, 1, dimensions / 2)
    dimensions = 2 * turn.shape[1]
    even, odd = x[..., :dimensions:2], x[..., 1:dimensions:2]
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    return turned if dimensions == x.shape[-1] else torch.cat((turned, x[..., dimensions:]), dim=-1)


def read(file: GGUFFile, name: str, device: str) -> Any:
    """Return a tensor as float16 or float32; Q8_0 is decoded where it is going to be used."""
    tensor = file.tensors[name]
    if tensor.type != "Q8_0":
        return torch.from_numpy(file.float32(name)).to(device)
    raw = torch.from_numpy(np.array(file.raw(name))).to(device)
    blocks = raw.view(tensor.shape[0], -1, BLOCK_BYTES)
    scale = blocks[..., :2].contiguous().view(torch.float16)  # (rows, blocks, 1)
    weights = blocks[..., 2:].contiguous().view(torch.int8).to(torch.float32) * scale.float()
    return weights.view(tensor.shape[0], -1)
