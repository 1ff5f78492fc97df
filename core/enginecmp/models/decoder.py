"""What a GGUF file's metadata says of a llama-shaped decoder, or a refusal: never a guess.

For engines that read the file by themselves. The equivalence gate's reference does not use it: what it is held
against must not share its conclusions.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.gguf_keys import GGUFKeys

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"

# Keys below "<architecture>." that are read here, or that say nothing about the arithmetic.
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


class RopeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as one file asks for it.

    Attributes:
        base: theta of dimension 0.
        dimensions: leading dimensions of a head that turn, an even number; the rest passes.
        interleaved: pairs are (2i, 2i + 1), because converters permute the rows of q and k for `llama`; otherwise
            they are (i, i + dimensions / 2), the layout of GPT-NeoX.
        position_scale: positions are multiplied by this (linear interpolation, Chen et al. 2023, arXiv:2306.15595).
        magnitude: cosine and sine are multiplied by this (LongRoPE's attention factor).
        factors: name of the tensor whose values divide the frequencies, shape (dimensions / 2,), or None.
    """

    base: float
    dimensions: int
    interleaved: bool
    position_scale: float
    magnitude: float
    factors: str | None

    def frequencies(self, file: GGUFFile) -> list[float]:
        """Return radians per position of every pair of dimensions that turns.

        Args:
            file: the one that the configuration was read from.
        """
        half = self.dimensions // 2
        plain = [self.position_scale * self.base ** (-2.0 * i / self.dimensions) for i in range(half)]
        if self.factors is None:
            return plain
        return [each / float(factor) for each, factor in zip(plain, file.float32(self.factors), strict=True)]


class DecoderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shape and constants of one model.

    Attributes:
        architecture: GGUF `general.architecture`.
        layers: number of blocks.
        width: length of a hidden state.
        heads: query heads, a multiple of `kv_heads`.
        kv_heads: key and value heads.
        head_dim: length of one head.
        feed_forward: length of a feed-forward network's inner state.
        epsilon: added to the mean square in every norm.
        context_length: positions that the model was trained on.
        sliding_window: positions that a token may look back on, itself included; 0 means all of them.
        rope: rotary embedding.
    """

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    epsilon: float
    context_length: int
    sliding_window: int
    rope: RopeConfig

    def position_limit(self, context_tokens: int) -> tuple[int, str]:
        """Return how many tokens a session without a sliding window may hold, and why fewer than asked for.

        Args:
            context_tokens: what is asked for.

        Returns:
            The limit, and the reason; empty where nothing is cut.
        """
        if 0 < self.sliding_window < context_tokens:
            return self.sliding_window, (
                "attention beyond the model's sliding window is not implemented, so use a shorter prompt"
            )
        return context_tokens, ""


def read_decoder(engine: str, file: GGUFFile, architectures: Collection[str], context_tokens: int) -> DecoderConfig:
    """Read shape and constants.

    Args:
        engine: its name, for errors.
        file: the checked GGUF file.
        architectures: those that the engine implements.
        context_tokens: tokens that the session shall hold; LongRoPE has one set of factors for contexts up to the
            original length and one beyond.

    Raises:
        UnsupportedModel: an architecture, a key or a value that nothing here implements.
    """
    keys = GGUFKeys(engine, file, architectures)
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
    context_length = keys.integer("context_length")
    return DecoderConfig(
        architecture=keys.architecture,
        layers=keys.integer("block_count"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        feed_forward=keys.integer("feed_forward_length"),
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        context_length=context_length,
        sliding_window=keys.integer("attention.sliding_window", 0, least=0),
        rope=_read_rope(file, keys, head_dim, context_length, context_tokens),
    )


def _read_rope(file: GGUFFile, keys: GGUFKeys, head_dim: int, context_length: int, context_tokens: int) -> RopeConfig:
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope"):
        keys.refuse("rope.scaling.type none, linear or longrope", f"'{scaling}'")
    dimensions = keys.integer("rope.dimension_count", head_dim)
    if dimensions > head_dim or dimensions % 2:
        keys.refuse(f"an even rope.dimension_count up to {head_dim}", f"{dimensions}")
    stretch = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context_length)
    long_rope = [name for name in (ROPE_LONG, ROPE_SHORT) if name in file.tensors]
    if len(long_rope) == 1 or (scaling == "longrope" and not long_rope):
        got = f"only {long_rope[0]}" if long_rope else "neither"
        keys.refuse(f"both tensors {ROPE_LONG} and {ROPE_SHORT}", got, "convert the model again")
    factors = None
    if ROPE_FREQS in file.tensors:
        factors = ROPE_FREQS
    elif long_rope:
        # One choice for the whole session: keys in the cache would otherwise have been turned by other angles.
        factors = ROPE_LONG if context_tokens > original else ROPE_SHORT
    if factors is not None and (shape := file.tensors[factors].shape) != (dimensions // 2,):
        keys.refuse(f"{factors} of shape ({dimensions // 2},)", f"{shape}")
    return RopeConfig(
        base=keys.number("rope.freq_base", 10000.0, above=0),
        dimensions=dimensions,
        interleaved=keys.architecture == "llama",
        position_scale=1.0 / stretch if scaling == "linear" else 1.0,
        magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        factors=factors,
    )
