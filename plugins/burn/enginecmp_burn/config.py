"""What a GGUF file's metadata says of the arithmetic, or a refusal: never a guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from enginecmp import GGUFKeys

if TYPE_CHECKING:
    from enginecmp import GGUFFile

ARCHITECTURES = ("llama", "qwen2", "phi3")

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"

# Keys below "<architecture>." that are implemented, or that say nothing about the arithmetic. Any other key with a
# value that is neither zero nor false is refused.
_KNOWN_KEYS = frozenset(
    {
        "attention.causal",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
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


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and constants of one model; the extension reads these attributes by name (`PyConfig` in Rust).

    Attributes:
        layers: number of blocks.
        width: length of a hidden state.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: length of one head.
        epsilon: added to the mean square in every norm.
        frequencies: radians per position of every pair of a head's dimensions that turns.
        interleaved: pairs are (2i, 2i + 1), because converters permute the rows of q and k for `llama`; otherwise
            they are (i, i + half), the layout of GPT-NeoX.
        magnitude: cosine and sine are multiplied by this (LongRoPE's attention factor).
        sliding_window: positions that a token may look back on, itself included; 0 means all of them.
        unread: tensors that say nothing more once the frequencies are known.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    frequencies: list[float]
    interleaved: bool
    magnitude: float
    sliding_window: int
    unread: list[str]

    def position_limit(self, context_tokens: int) -> tuple[int, str]:
        """Return how many tokens a session may hold, and why fewer than asked for: empty where they are not."""
        if 0 < self.sliding_window < context_tokens:
            return self.sliding_window, (
                "attention beyond the model's sliding window is not implemented, so use a shorter prompt"
            )
        return context_tokens, ""


def read_config(file: GGUFFile, context_tokens: int) -> Config:
    """Read shape and constants.

    Args:
        file: the checked GGUF file.
        context_tokens: tokens that the session shall hold; LongRoPE has one set of factors for contexts up to the
            original length and one beyond.

    Raises:
        UnsupportedModel: an architecture or a key that is not implemented.
    """
    keys = GGUFKeys("burn", file, ARCHITECTURES)
    keys.refuse_unknown(_KNOWN_KEYS)
    if not keys.flag("attention.causal", True):
        keys.refuse("causal attention", f"{keys.architecture}.attention.causal = false")
    width, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    kv_heads = keys.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        keys.refuse("heads to be a multiple of kv heads", f"{heads} and {kv_heads}")
    head_dim = keys.integer("attention.key_length", width // heads)
    if (value_length := keys.integer("attention.value_length", head_dim)) != head_dim:
        keys.refuse("attention.value_length to equal key_length", f"{value_length} and {head_dim}")
    return Config(
        layers=keys.integer("block_count"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        frequencies=_frequencies(file, keys, head_dim, context_tokens),
        interleaved=keys.architecture == "llama",
        magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        sliding_window=keys.integer("attention.sliding_window", 0, least=0),
        unread=[ROPE_FREQS, ROPE_LONG, ROPE_SHORT],
    )


def _frequencies(file: GGUFFile, keys: GGUFKeys, head_dim: int, context_tokens: int) -> list[float]:
    """Base^(-2i / dimensions) for pair i (Su et al. 2021, arXiv:2104.09864), scaled by what the file asks for."""
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope"):
        keys.refuse("rope.scaling.type none, linear or longrope", f"'{scaling}'")
    dimensions = keys.integer("rope.dimension_count", head_dim)
    if dimensions > head_dim or dimensions % 2:
        keys.refuse(f"an even rope.dimension_count up to {head_dim}", f"{dimensions}")
    base, stretch = keys.number("rope.freq_base", 10000.0, above=0), 1.0
    if scaling == "linear":
        # Linear interpolation of positions (Chen et al. 2023, arXiv:2306.15595).
        stretch = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    frequencies = [base ** (-2.0 * i / dimensions) / stretch for i in range(dimensions // 2)]
    original = keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))
    long_rope = [name for name in (ROPE_LONG, ROPE_SHORT) if name in file.tensors]
    if len(long_rope) == 1 or (scaling == "longrope" and not long_rope):
        keys.refuse(f"both tensors {ROPE_LONG} and {ROPE_SHORT}", long_rope[0] if long_rope else "neither")
    factors = None
    if ROPE_FREQS in file.tensors:
        factors = ROPE_FREQS
    elif long_rope:
        # One choice for the whole session: keys in the cache would otherwise have been turned by other angles.
        factors = ROPE_LONG if context_tokens > original else ROPE_SHORT
    if factors is None:
        return frequencies
    if (shape := file.tensors[factors].shape) != (len(frequencies),):
        keys.refuse(f"{factors} of shape ({len(frequencies)},)", f"{shape}")
    return [each / float(factor) for each, factor in zip(frequencies, file.float32(factors), strict=True)]
