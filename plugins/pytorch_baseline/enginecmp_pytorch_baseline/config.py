"""What a GGUF file's metadata says of the arithmetic, or a refusal: never a guess.

This engine is the reference that others are held against, so a key that changes the computation and is not
implemented here ends in `UnsupportedModel` and not in logits that are nearly right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginecmp import GGUFFile, GGUFKeys

ENGINE = "pytorch_baseline"

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt2", "llada", "dream")

DIFFUSION = ("llada", "dream")
"""Masked diffusion: the tensors of llama and qwen2, attention in both directions (arXiv:2502.09992, 2508.15487)."""

# Everything that gguf-py can dequantize.
QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS: Mapping[str, tuple[str, ...]] = {
    "llama": (ROPE_FREQS, ROPE_LONG, ROPE_SHORT),
    "qwen2": (),
    "phi3": (ROPE_LONG, ROPE_SHORT),
    "gpt2": (),
    "llada": (),
    "dream": (),
}
"""Tensors with factors for the rotary embedding's frequencies, by the architectures that may carry them."""

# Keys below "<architecture>." that are implemented, or that say nothing about the arithmetic. Any other key
# with a value that is neither zero nor false is refused.
_KNOWN_KEYS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "tensor_data_layout",
        "vocab_size",
    }
)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as one file asks for it.

    Attributes:
        base: theta of dimension 0.
        dimensions: how many of a head's dimensions turn; the rest pass.
        interleaved: pairs are (2i, 2i + 1), because converters permute the rows of q and k for `llama` and `llada`;
            otherwise they are (i, i + dimensions / 2), the layout of GPT-NeoX.
        position_scale: positions are multiplied by this (linear interpolation, Chen et al. 2023,
            arXiv:2306.15595).
        magnitude: cosine and sine are multiplied by this (LongRoPE's attention factor).
        factors: name of the tensor whose values divide the frequencies, shape (dimensions / 2,), or None.
    """

    base: float
    dimensions: int
    interleaved: bool
    position_scale: float
    magnitude: float
    factors: str | None


@dataclass(frozen=True)
class DiffusionConfig:
    """What a diffusion model says of its masks.

    Attributes:
        mask: id of the mask token.
        shifted: what is at a position is told by the logits one position before, as in the autoregressive model that
            Dream was made from; the first position's by its own.
    """

    mask: int
    shifted: bool


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one model.

    Attributes:
        architecture: GGUF `general.architecture`.
        layers: number of blocks.
        width: length of a hidden state.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: length of one head.
        feed_forward: length of a feed-forward network's inner state.
        vocabulary: number of token ids.
        epsilon: added to the variance in every norm.
        context_length: positions that the model was trained on.
        sliding_window: positions that a token may look back on, itself included; 0 means all of them.
        rope: rotary embedding, or None where positions are learned.
        diffusion: of a model that predicts masks and attends in both directions, else None.
    """

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    epsilon: float
    context_length: int
    sliding_window: int
    rope: RopeConfig | None
    diffusion: DiffusionConfig | None = None

    def position_limit(self, context_tokens: int) -> tuple[int, str]:
        """Return how many tokens a session may hold, and what to do when that is not enough.

        Args:
            context_tokens: what the session was asked to hold.
        """
        limit, fix = context_tokens, "load it with context_tokens={needed}"
        if self.rope is None and self.context_length < limit:
            limit, fix = self.context_length, "the model has no more learned positions, so use a shorter prompt"
        if 0 < self.sliding_window < limit:
            limit = self.sliding_window
            fix = "attention beyond the model's sliding window is not implemented, so use a shorter prompt"
        return limit, fix


def read_config(file: GGUFFile, context_tokens: int) -> ModelConfig:
    """Read the shape and constants of a model.

    Args:
        file: the checked GGUF file.
        context_tokens: tokens that the session shall hold; LongRoPE has one set of factors for contexts up to
            the original length and one beyond.

    Raises:
        UnsupportedModel: an architecture, key or tensor type that this engine does not implement.
    """
    keys = GGUFKeys(ENGINE, file, ARCHITECTURES)
    architecture = keys.architecture
    for tensor in file.tensors.values():
        if tensor.type not in QUANTIZATIONS:
            keys.refuse("a tensor type that gguf can dequantize", f"{tensor.type} ({tensor.name})")
    keys.refuse_unknown(_KNOWN_KEYS)
    causal = architecture not in DIFFUSION
    if keys.flag("attention.causal", causal) != causal:
        keys.refuse(
            "causal attention" if causal else "attention in both directions",
            f"{architecture}.attention.causal = {str(not causal).lower()}",
        )
    if "token_embd.weight" not in file.tensors:
        keys.refuse("a tensor token_embd.weight", "none")

    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", width // heads)
    if (value_length := keys.integer("attention.value_length", head_dim)) != head_dim:
        keys.refuse("attention.value_length to equal key_length", f"{value_length} and {head_dim}")
    norm = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    context_length = keys.integer("context_length")
    return ModelConfig(
        architecture=architecture,
        layers=keys.integer("block_count"),
        width=width,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        feed_forward=keys.integer("feed_forward_length"),
        vocabulary=file.tensors["token_embd.weight"].shape[0],
        epsilon=keys.number(f"attention.{norm}"),
        context_length=context_length,
        sliding_window=keys.integer("attention.sliding_window", 0, least=0),
        rope=None if architecture == "gpt2" else _read_rope(file, keys, head_dim, context_length, context_tokens),
        diffusion=None if causal else _read_diffusion(file, keys),
    )


def _read_diffusion(file: GGUFFile, keys: GGUFKeys) -> DiffusionConfig:
    mask, shifted = file.metadata.get("tokenizer.ggml.mask_token_id"), file.metadata.get("diffusion.shift_logits", True)
    vocabulary = file.tensors["token_embd.weight"].shape[0]
    if not isinstance(mask, int) or not 0 <= mask < vocabulary:
        keys.refuse(f"tokenizer.ggml.mask_token_id in [0, {vocabulary})", f"{mask!r:.40}")
    if not isinstance(shifted, bool):
        keys.refuse("true or false in diffusion.shift_logits", f"{shifted!r:.40}")
    return DiffusionConfig(mask, shifted)


def _read_rope(file: GGUFFile, keys: GGUFKeys, head_dim: int, context_length: int, context_tokens: int) -> RopeConfig:
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope"):
        keys.refuse("rope.scaling.type none, linear or longrope", f"'{scaling}'")
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context_length)
    long_rope = [name for name in (ROPE_LONG, ROPE_SHORT) if name in file.tensors]
    if len(long_rope) == 1 or (scaling == "longrope" and not long_rope):
        keys.refuse(f"both tensors {ROPE_LONG} and {ROPE_SHORT}", f"only {long_rope[0]}" if long_rope else "neither")
    factors = None
    if ROPE_FREQS in file.tensors:
        factors = ROPE_FREQS
    elif long_rope:
        # One choice for the whole session, as llama.cpp makes it: switching in the middle of a request would
        # leave keys in the cache that were turned by other angles.
        factors = ROPE_LONG if context_tokens > original else ROPE_SHORT
    dimensions = keys.integer("rope.dimension_count", head_dim)
    if dimensions > head_dim or dimensions % 2:
        keys.refuse(f"an even rope.dimension_count up to {head_dim}", f"{dimensions}")
    return RopeConfig(
        base=keys.number("rope.freq_base", 10000.0, above=0),
        dimensions=dimensions,
        interleaved=keys.architecture in ("llama", "llada"),
        position_scale=1.0 / factor if scaling == "linear" else 1.0,
        magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        factors=factors,
    )
