"""The shapes that `cmp model synth` knows: metadata and tensor list of each, as llama.cpp expects them.

Sizes are those of the published configurations of the models named; the weights are not theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from enginecmp.models.diffusion import AUTOREGRESSIVE
from enginecmp.models.gguf_write import field
from enginecmp.models.huggingface.rope import Llama3

Role = Literal["embedding", "position", "query", "in", "residual_out", "head", "norm", "bias", "rope_factors"]

Architecture = Literal["llama", "qwen2", "phi3", "gpt2", "llada", "dream"]

LLAMA32_ROPE = Llama3(32.0, 1.0, 4.0, 8192)
"""Llama 3.2's published scaling."""


class SynthShape(msgspec.Struct, frozen=True, kw_only=True):
    """One model to imitate.

    Attributes:
        architecture: GGUF architecture.
        layers, hidden, heads, kv_heads, head_dim, feed_forward: the transformer's shape.
        vocabulary: token ids; 0 takes what the tokenizer has.
        context: longest context in tokens.
        rope_base: base of the rotary embedding (llama, qwen2, phi3).
        epsilon: of the norms.
        tied: the output head is the embedding.
        llama3_rope: `rope_freqs.weight` with Llama 3.2's scaling.
        tiny: small self-made vocabulary instead of the embedded model's.
        pre: name of the pre-tokenizer of a tiny shape.
        mask: id of the mask token of a diffusion model; -1 is the vocabulary's last, None for no diffusion model.
    """

    architecture: Architecture
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int = 0
    context: int
    rope_base: float = 10_000.0
    epsilon: float = 1e-5
    tied: bool = False
    llama3_rope: bool = False
    tiny: bool = False
    pre: str = "gpt-2"
    mask: int | None = None

    @property
    def family(self) -> str:
        """Architecture whose tensors it has."""
        return AUTOREGRESSIVE.get(self.architecture, self.architecture)

    @property
    def mask_id(self) -> int | None:
        """Id of the mask token, None where there is none."""
        return None if self.mask is None else self.mask % self.vocabulary


def _tiny(architecture: Architecture, pre: str, kv_heads: int, tied: bool) -> SynthShape:
    """Return a shape that every engine loads in a blink."""
    return SynthShape(
        architecture=architecture, layers=2, hidden=64, heads=4, kv_heads=kv_heads, head_dim=16,
        feed_forward=128, context=512, tied=tied, tiny=True, pre=pre,
        mask=-1 if architecture in AUTOREGRESSIVE else None,
    )  # fmt: skip


SHAPES = {
    "tiny-llama": _tiny("llama", "llama-bpe", 2, False),
    "tiny-qwen2": _tiny("qwen2", "qwen2", 2, True),
    "tiny-phi3": _tiny("phi3", "gpt-2", 2, False),
    "tiny-gpt2": _tiny("gpt2", "gpt-2", 4, True),
    "tiny-llada": _tiny("llada", "gpt-2", 4, False),
    "tiny-dream": _tiny("dream", "qwen2", 2, True),
    "llama-3.2-1b": SynthShape(
        architecture="llama", layers=16, hidden=2048, heads=32, kv_heads=8, head_dim=64, feed_forward=8192,
        vocabulary=128_256, context=131_072, rope_base=500_000.0, tied=True, llama3_rope=True,
    ),
    "llama-3.2-3b": SynthShape(
        architecture="llama", layers=28, hidden=3072, heads=24, kv_heads=8, head_dim=128, feed_forward=8192,
        vocabulary=128_256, context=131_072, rope_base=500_000.0, tied=True, llama3_rope=True,
    ),
    "qwen2.5-0.5b": SynthShape(
        architecture="qwen2", layers=24, hidden=896, heads=14, kv_heads=2, head_dim=64, feed_forward=4864,
        vocabulary=151_936, context=32_768, rope_base=1_000_000.0, epsilon=1e-6, tied=True,
    ),
    "phi-3-mini": SynthShape(
        architecture="phi3", layers=32, hidden=3072, heads=32, kv_heads=32, head_dim=96, feed_forward=8192,
        vocabulary=32_064, context=4096,
    ),
    "gpt-2-small": SynthShape(
        architecture="gpt2", layers=12, hidden=768, heads=12, kv_heads=12, head_dim=64, feed_forward=3072,
        vocabulary=50_257, context=1024, tied=True,
    ),
    "mistral-7b": SynthShape(
        architecture="llama", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, feed_forward=14_336,
        vocabulary=32_000, context=32_768, rope_base=1_000_000.0,
    ),
    "llada-8b": SynthShape(
        architecture="llada", layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128, feed_forward=12_288,
        vocabulary=126_464, context=4096, rope_base=500_000.0, mask=126_336,
    ),
    "dream-7b": SynthShape(
        architecture="dream", layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, feed_forward=18_944,
        vocabulary=152_064, context=131_072, rope_base=1_000_000.0, epsilon=1e-6, mask=151_666,
    ),
    # The embedded model's shape, with a token more for the mask.
    "llada-135m": SynthShape(
        architecture="llada", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, feed_forward=1536,
        vocabulary=49_153, context=8192, rope_base=100_000.0, tied=True, mask=-1,
    ),
}  # fmt: skip


class SynthTensor(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of a shape: its name, row-major shape and what it does."""

    name: str
    shape: tuple[int, ...]
    role: Role


def tensors_of(shape: SynthShape) -> Iterator[SynthTensor]:
    """Yield every tensor of a shape, in file order."""
    hidden, inner, width = shape.hidden, shape.feed_forward, shape.heads * shape.head_dim
    kv_width = shape.kv_heads * shape.head_dim
    biased = shape.architecture == "gpt2"
    yield _tensor("token_embd.weight", "embedding", shape.vocabulary, hidden)
    if biased:
        yield _tensor("position_embd.weight", "position", shape.context, hidden)
    if shape.llama3_rope:
        yield _tensor("rope_freqs.weight", "rope_factors", shape.head_dim // 2)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield from _norm(f"{block}.attn_norm", hidden, biased)
        if shape.family in ("llama", "qwen2"):
            bias = shape.family == "qwen2"
            yield from _linear(f"{block}.attn_q", "query", width, hidden, bias)
            yield from _linear(f"{block}.attn_k", "in", kv_width, hidden, bias)
            yield from _linear(f"{block}.attn_v", "in", kv_width, hidden, bias)
        else:
            yield from _linear(f"{block}.attn_qkv", "in", width + 2 * kv_width, hidden, biased)
        yield from _linear(f"{block}.attn_output", "residual_out", hidden, width, biased)
        yield from _norm(f"{block}.ffn_norm", hidden, biased)
        if shape.family in ("llama", "qwen2"):
            yield from _linear(f"{block}.ffn_gate", "in", inner, hidden, False)
        # phi3 keeps gate and up in one matrix, gate first.
        rows = 2 * inner if shape.architecture == "phi3" else inner
        yield from _linear(f"{block}.ffn_up", "in", rows, hidden, biased)
        yield from _linear(f"{block}.ffn_down", "residual_out", hidden, inner, biased)
    yield from _norm("output_norm", hidden, biased)
    if not shape.tied:
        yield _tensor("output.weight", "head", shape.vocabulary, hidden)


def fields_of(shape: SynthShape, description: str, name: str, file_type: int) -> list[bytes]:
    """Return the encoded metadata of a shape, the tokenizer's not included."""
    arch = shape.architecture
    epsilon = "attention.layer_norm_epsilon" if arch == "gpt2" else "attention.layer_norm_rms_epsilon"
    fields = [
        field("general.architecture", "STRING", arch),
        field("general.type", "STRING", "model"),
        field("general.name", "STRING", name),
        field("general.description", "STRING", description),
        field("general.file_type", "UINT32", file_type),
        field("general.quantization_version", "UINT32", 2),
        field(f"{arch}.block_count", "UINT32", shape.layers),
        field(f"{arch}.context_length", "UINT32", shape.context),
        field(f"{arch}.embedding_length", "UINT32", shape.hidden),
        field(f"{arch}.feed_forward_length", "UINT32", shape.feed_forward),
        field(f"{arch}.attention.head_count", "UINT32", shape.heads),
        field(f"{arch}.attention.head_count_kv", "UINT32", shape.kv_heads),
        field(f"{arch}.{epsilon}", "FLOAT32", shape.epsilon),
        field(f"{arch}.vocab_size", "UINT32", shape.vocabulary),
    ]
    if arch != "gpt2":
        fields += [
            field(f"{arch}.rope.dimension_count", "UINT32", shape.head_dim),
            field(f"{arch}.rope.freq_base", "FLOAT32", shape.rope_base),
        ]
    if shape.head_dim * shape.heads != shape.hidden:
        fields += [
            field(f"{arch}.attention.key_length", "UINT32", shape.head_dim),
            field(f"{arch}.attention.value_length", "UINT32", shape.head_dim),
        ]
    if shape.mask_id is not None:
        fields += [
            field(f"{arch}.attention.causal", "BOOL", False),
            field("tokenizer.ggml.mask_token_id", "UINT32", shape.mask_id),
            # Dream was made from an autoregressive model: what is at a position is told one position before.
            field("diffusion.shift_logits", "BOOL", arch == "dream"),
        ]
    if arch == "phi3":
        fields.append(field("phi3.rope.scaling.original_context_length", "UINT32", shape.context))
    return fields


def _tensor(name: str, role: Role, *shape: int) -> SynthTensor:
    """Return one tensor."""
    return SynthTensor(name=name, shape=shape, role=role)


def _linear(name: str, role: Role, rows: int, columns: int, bias: bool) -> Iterator[SynthTensor]:
    """Yield a projection's matrix and, where it has one, its bias."""
    yield _tensor(f"{name}.weight", role, rows, columns)
    if bias:
        yield _tensor(f"{name}.bias", "bias", rows)


def _norm(name: str, width: int, bias: bool) -> Iterator[SynthTensor]:
    """Yield a norm's scale and, for LayerNorm, its bias."""
    yield _tensor(f"{name}.weight", "norm", width)
    if bias:
        yield _tensor(f"{name}.bias", "bias", width)
