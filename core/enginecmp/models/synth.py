"""Synthesize a model: seeded random weights in a known shape, for tests and for machines without a model hub.

Such a model says nothing sensible, but it costs an engine exactly what the real one costs, and two engines
must compute the same distribution from it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from enginecmp.errors import UsageError, did_you_mean, meant
from enginecmp.models.gguf_file import GGUFFile
from enginecmp.models.gguf_write import TensorPlan, encode_weights, write_gguf
from enginecmp.models.info import describe
from enginecmp.models.paths import named_in_utf8
from enginecmp.models.quantize import FILE_TYPES, planned_type
from enginecmp.models.synth_shapes import LLAMA32_ROPE, SHAPES, SynthShape, SynthTensor, fields_of, tensors_of
from enginecmp.models.synth_vocab import borrowed_fields, tiny_fields
from enginecmp.types import ModelInfo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_WEIGHTS = 2**22
"""Weights drawn at once: bounds the memory, whatever the shape."""

LOGIT_SPREAD = 2.5
"""Standard deviation of a position's logits: a distribution with a clear first choice that is not certain."""


def write_synth(
    path: Path | str,
    like: str,
    quantization: str = "F32",
    seed: int = 0,
    layers: int | None = None,
    tokenizer: GGUFFile | None = None,
) -> ModelInfo:
    """Write a model with random weights and return what it is.

    The same arguments give the same bytes.

    Args:
        path: the GGUF file to write.
        like: a name from `SHAPES`.
        quantization: tensor type of the matrices, e.g. "F32" or "Q8_0".
        seed: every weight comes from it.
        layers: another number of layers than the original's.
        tokenizer: whose vocabulary the large shapes borrow; the embedded model when not given.

    Raises:
        UsageError: a shape, type or number that does not exist.
        ModelError: the file cannot be written.
    """
    like = meant(like, SHAPES)
    if like not in SHAPES:
        msg = f"synth: expected a known shape, got '{like}'{did_you_mean(like, SHAPES)}"
        raise UsageError(msg)
    quantization = meant(quantization.upper(), FILE_TYPES)
    if quantization not in FILE_TYPES:
        msg = f"synth: expected a known quantization, got '{quantization}'{did_you_mean(quantization, FILE_TYPES)}"
        raise UsageError(msg)
    if seed < 0 or (layers is not None and layers < 1):
        msg = f"synth: expected seed >= 0 and layers >= 1, got seed {seed} and layers {layers}"
        raise UsageError(msg)
    shape = SHAPES[like] if layers is None else msgspec.structs.replace(SHAPES[like], layers=layers)
    if shape.tiny:
        vocabulary, size = tiny_fields(shape.pre, masked=shape.mask is not None)
        shape = msgspec.structs.replace(shape, vocabulary=size)
        whose = "a small self-made vocabulary"
    else:
        vocabulary = borrowed_fields(tokenizer or _embedded_tokenizer(), shape.vocabulary, shape.mask_id)
        whose = f"the embedded model's vocabulary cut or padded to {shape.vocabulary} tokens"
    name = f"synth-{like}-seed{seed}" + ("" if layers is None else f"-{layers}layers")
    description = f"Random weights (seed {seed}) in the shape of {like}, {shape.layers} layers, with {whose}."
    described = {tensor.name: tensor for tensor in tensors_of(shape)}
    plans = [
        TensorPlan(name=t.name, shape=t.shape, type=planned_type(t.name, t.shape, quantization))
        for t in described.values()
    ]
    path = named_in_utf8(Path(path))
    sha256 = write_gguf(
        path,
        # llama.cpp takes "phi3" and "phi-3" in a name for the original's vocabulary, and looks for its tokens.
        fields_of(shape, description, name.replace("phi-3", "phi").replace("phi3", "phi"), FILE_TYPES[quantization])
        + vocabulary,
        plans,
        lambda plan: (encode_weights(weights, plan.type) for weights in _draw(shape, described[plan.name], seed)),
    )
    return describe(path, name=f"{name}:{quantization.lower()}", sha256=sha256)


def _embedded_tokenizer() -> GGUFFile:
    """Return the embedded model's file."""
    from enginecmp.models.gguf_file import read_gguf
    from enginecmp.models.store import DEFAULT_MODEL, resolve

    return read_gguf(resolve(DEFAULT_MODEL, fetch=True).path)


def _draw(shape: SynthShape, tensor: SynthTensor, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield a tensor's weights in pieces of whole rows.

    Each tensor has a generator of its own, so one tensor's values do not depend on the others.
    """
    import numpy as np

    if tensor.role == "rope_factors":
        yield np.array(LLAMA32_ROPE.factors(shape.rope_base, shape.head_dim), np.float32)
        return
    mean, spread = _distribution(shape, tensor)
    random = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
    rows, row = (tensor.shape[0], tensor.shape[1]) if len(tensor.shape) == 2 else (1, tensor.shape[0])
    step = max(1, CHUNK_WEIGHTS // row)
    for first in range(0, rows, step):
        weights = random.standard_normal((min(step, rows - first), row), dtype=np.float32)
        weights *= np.float32(spread)
        weights += np.float32(mean)
        yield weights


def _distribution(shape: SynthShape, tensor: SynthTensor) -> tuple[float, float]:
    """Return mean and standard deviation of a tensor's weights.

    Chosen so that every part shows in the logits: norms scale by about 1 but not exactly, attention is neither
    flat nor one-hot, and what the layers add outweighs a tied embedding. With a tied head of width d, a residual
    stream that still points along its token's embedding gives that token a logit about sqrt(d) times larger
    than the others' spread, and the model would repeat its input for ever.
    """
    width = shape.hidden
    head = LOGIT_SPREAD / math.sqrt(width)  # the final norm's output has about unit elements
    embedding = head if shape.tied else 1.0
    layers_sum = embedding * (math.sqrt(width) if shape.tied else 2.0)
    match tensor.role:
        case "embedding":
            return 0.0, embedding
        case "position":
            return 0.0, 0.5 * embedding
        case "query":
            return 0.0, 2 / math.sqrt(tensor.shape[1])
        case "in":
            return 0.0, 1 / math.sqrt(tensor.shape[1])
        case "residual_out":
            # 2 x layers branches add up; their variances sum to layers_sum squared.
            return 0.0, layers_sum / math.sqrt(2 * shape.layers) / math.sqrt(tensor.shape[1])
        case "head":
            return 0.0, head
        case "norm":
            return 1.0, 0.1
        case _:
            return 0.0, 0.1 if "attn_output" not in tensor.name and "ffn_down" not in tensor.name else 0.1 * embedding
