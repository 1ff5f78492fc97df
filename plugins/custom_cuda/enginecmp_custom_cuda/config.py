"""What a GGUF file's metadata says of the arithmetic, or a refusal: never a guess.

A key that changes the computation and is not implemented here ends in `UnsupportedModel`, not in logits that are
nearly right. What the tensors must look like is in `weights/plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from enginecmp import GGUFFile, GGUFKeys, UnsupportedModel

from .weights.kinds import BLOCK

ENGINE = "custom_cuda"

ARCHITECTURES = ("llama", "qwen2", "phi3")

HEAD_DIMS = (16, 32, 64, 96, 128)
"""Lengths of a head that the kernels are compiled for."""

ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS: Mapping[str, tuple[str, ...]] = {
    "llama": (ROPE_FREQS, ROPE_LONG, ROPE_SHORT),
    "qwen2": (),
    "phi3": (ROPE_LONG, ROPE_SHORT),
}
"""Tensors with factors for the rotary embedding's frequencies, by the architectures that may carry them."""

# Keys below "<architecture>." that are implemented, or that say nothing about the arithmetic. Any other key whose
# value is neither zero nor false nor empty is refused.
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


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) as one file asks for it.

    Attributes:
        base: theta of dimension 0.
        dimensions: leading dimensions of a head that turn; the rest passes.
        interleaved: pairs in the file are (2i, 2i + 1), as converters write `llama`; otherwise they are
            (i, i + dimensions / 2), the layout of GPT-NeoX. On the device they are always neighbours.
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


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of one model.

    Attributes:
        architecture: GGUF `general.architecture`.
        layers: number of blocks.
        hidden: length of a hidden state.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: length of one head.
        inner: length of a feed-forward network's inner state.
        vocabulary: number of token ids.
        epsilon: added to the mean square in every norm.
        context_length: positions that the model was trained on.
        sliding_window: positions that a token may look back on, itself included; 0 means all of them. Never shorter
            than the session's context: such a model is refused.
        rope: rotary embedding.
    """

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    epsilon: float
    context_length: int
    sliding_window: int
    rope: RopeConfig


def read_config(file: GGUFFile, context_tokens: int) -> ModelConfig:
    """Read the shape and constants of a model.

    Args:
        file: the checked GGUF file.
        context_tokens: tokens that the session shall hold; LongRoPE has one set of factors for contexts up to the
            original length and one beyond.

    Raises:
        UnsupportedModel: an architecture, key or shape that the kernels do not compute.
    """
    keys = GGUFKeys(ENGINE, file, ARCHITECTURES)
    keys.refuse_unknown(_KNOWN_KEYS)
    if not keys.flag("attention.causal", True):
        keys.refuse("causal attention", f"{keys.architecture}.attention.causal = false")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        keys.refuse("a matrix token_embd.weight", "none")

    hidden, heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    if (value_length := keys.integer("attention.value_length", head_dim)) != head_dim:
        keys.refuse("attention.value_length to equal key_length", f"{value_length} and {head_dim}")
    context_length = keys.integer("context_length")
    config = ModelConfig(
        architecture=keys.architecture,
        layers=keys.integer("block_count"),
        hidden=hidden,
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        inner=keys.integer("feed_forward_length"),
        vocabulary=embedding.shape[0],
        epsilon=keys.number("attention.layer_norm_rms_epsilon"),
        context_length=context_length,
        sliding_window=keys.integer("attention.sliding_window", 0, least=0),
        rope=_read_rope(file, keys, head_dim, context_length, context_tokens),
    )
    _check_shape(config, context_tokens)
    return config


def _check_shape(config: ModelConfig, context_tokens: int) -> None:
    """Refuse shapes that no kernel is compiled for."""
    if config.head_dim not in HEAD_DIMS:
        refuse(f"expected heads of length {', '.join(map(str, HEAD_DIMS))}", f"{config.head_dim}")
    if config.heads % config.kv_heads:
        came = f"{config.heads} over {config.kv_heads}"
        refuse("expected a whole number of query heads for each key and value head", came)
    for name, columns in (("hidden state", config.hidden), ("feed-forward network", config.inner)):
        if columns % BLOCK:
            refuse(f"expected a {name} whose length is a multiple of {BLOCK}", f"{columns}")
    # A head's length is a multiple of 16, so an odd number of heads of 16 is half a block short.
    if config.heads * config.head_dim % BLOCK:
        refuse(f"expected query heads of together a multiple of {BLOCK}", f"{config.heads} of {config.head_dim}")
    if config.rope.dimensions % 2 or config.rope.dimensions > config.head_dim:
        refuse(f"expected an even rope.dimension_count up to {config.head_dim}", f"{config.rope.dimensions}")
    if 0 < config.sliding_window < context_tokens:
        refuse(
            f"expected a model that attends to all of {context_tokens} tokens",
            f"a sliding window of {config.sliding_window}",
            f"pass --context {config.sliding_window} or less",
        )


def _read_rope(file: GGUFFile, keys: GGUFKeys, head_dim: int, context_length: int, context_tokens: int) -> RopeConfig:
    """Read what the file says of the rotary embedding."""
    scaling = keys.text("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope"):
        keys.refuse("rope.scaling.type none, linear or longrope", f"'{scaling}'")
    factor = keys.number("rope.scaling.factor", 0.0) or keys.number("rope.scale_linear", 0.0) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context_length)
    long_rope = [name for name in (ROPE_LONG, ROPE_SHORT) if name in file.tensors]
    if len(long_rope) == 1 or (scaling == "longrope" and not long_rope):
        came = f"only {long_rope[0]}" if long_rope else "neither"
        keys.refuse(f"both tensors {ROPE_LONG} and {ROPE_SHORT}", came, "convert the model again")
    factors = None
    if ROPE_FREQS in file.tensors:
        factors = ROPE_FREQS
    elif long_rope:
        # One choice for the whole session: switching in the middle of a request would leave keys in the cache that
        # were turned by other angles.
        factors = ROPE_LONG if context_tokens > original else ROPE_SHORT
    return RopeConfig(
        base=keys.number("rope.freq_base", 10000.0, above=0),
        dimensions=keys.integer("rope.dimension_count", head_dim),
        interleaved=keys.architecture == "llama",
        position_scale=1.0 / factor if scaling == "linear" else 1.0,
        magnitude=keys.number("rope.scaling.attn_factor", 1.0),
        factors=factors,
    )


def refuse(expected: str, came: str, mend: str = "leave this engine out with --engines") -> NoReturn:
    """Raise `UnsupportedModel` with one line: what was expected, what came, the next step."""
    msg = f"{ENGINE}: {expected}, came {came}; {mend}"
    raise UnsupportedModel(msg)
