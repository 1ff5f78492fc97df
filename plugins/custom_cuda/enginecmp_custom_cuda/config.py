"""What a GGUF file's metadata says of the arithmetic, or a refusal: never a guess.

Shape and constants are read as for every engine that reads the file by itself; here is what the kernels ask beyond it.
What the tensors must look like is in `weights/plan.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import msgspec

from enginecmp import GGUFFile, UnsupportedModel
from enginecmp.models.decoder import ROPE_FREQS, ROPE_LONG, ROPE_SHORT, DecoderConfig, read_decoder

ENGINE = "custom_cuda"

ARCHITECTURES = ("llama", "qwen2", "phi3")

BLOCK = 32
"""Weights that share a scale, and the unit in which columns are counted for every kind: rows are whole blocks long."""

HEAD_DIMS = (16, 32, 64, 96, 128)
"""Lengths of a head that the kernels are compiled for."""

ROPE_TENSORS: Mapping[str, tuple[str, ...]] = {
    "llama": (ROPE_FREQS, ROPE_LONG, ROPE_SHORT),
    "qwen2": (),
    "phi3": (ROPE_LONG, ROPE_SHORT),
}
"""Tensors with factors for the rotary embedding's frequencies, by the architectures that may carry them."""


class ModelConfig(DecoderConfig, frozen=True, kw_only=True):
    """Shape and constants of one model; a sliding window is never shorter than the session's context.

    Attributes:
        vocabulary: number of token ids.
    """

    vocabulary: int


def read_config(file: GGUFFile, context_tokens: int) -> ModelConfig:
    """Read the shape and constants of a model.

    Args:
        file: the checked GGUF file.
        context_tokens: tokens that the session shall hold; LongRoPE has one set of factors for contexts up to the
            original length and one beyond.

    Raises:
        UnsupportedModel: an architecture, key or shape that the kernels do not compute.
    """
    decoder = read_decoder(ENGINE, file, ARCHITECTURES, context_tokens)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        refuse("expected a matrix token_embd.weight", "none")
    config = ModelConfig(**msgspec.structs.asdict(decoder), vocabulary=embedding.shape[0])
    _check_shape(config, context_tokens)
    return config


def _check_shape(config: ModelConfig, context_tokens: int) -> None:
    """Refuse shapes that no kernel is compiled for."""
    if config.head_dim not in HEAD_DIMS:
        refuse(f"expected heads of length {', '.join(map(str, HEAD_DIMS))}", f"{config.head_dim}")
    for name, columns in (("hidden state", config.width), ("feed-forward network", config.feed_forward)):
        if columns % BLOCK:
            refuse(f"expected a {name} whose length is a multiple of {BLOCK}", f"{columns}")
    # A head's length is a multiple of 16, so an odd number of heads of 16 is half a block short.
    if config.heads * config.head_dim % BLOCK:
        refuse(f"expected query heads of together a multiple of {BLOCK}", f"{config.heads} of {config.head_dim}")
    if 0 < config.sliding_window < context_tokens:
        refuse(
            f"expected a model that attends to all of {context_tokens} tokens",
            f"a sliding window of {config.sliding_window}",
            f"choose a scenario whose cells have at most {config.sliding_window} tokens, prompt and output together",
        )


def refuse(expected: str, got: str, fix: str = "leave this engine out with --engines") -> NoReturn:
    """Raise `UnsupportedModel` with one line: what was expected, what it got, the next step."""
    msg = f"{ENGINE}: {expected}, got {got}; {fix}"
    raise UnsupportedModel(msg)
