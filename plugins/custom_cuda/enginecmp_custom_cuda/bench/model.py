"""The model that is measured: a file of the user's, or one of random weights in a known shape, written fast.

`enginecmp.models.synth` draws normal numbers and rounds them, which takes minutes for a billion. Here Q8_0 blocks are
made directly: random bytes as weights, and the one scale that gives a matrix its spread. No two weights are related,
and the logits stay moderate, which is all that a measurement of speed needs; nothing here is what a real model says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from enginecmp import ModelInfo, read_gguf
from enginecmp.models.gguf_write import TensorPlan, write_gguf
from enginecmp.models.info import describe
from enginecmp.models.quantize import FILE_TYPES
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES, SynthShape, SynthTensor, fields_of, llama3_rope_factors, tensors_of
from enginecmp.models.synth_vocab import borrowed_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK, BLOCK_BYTES = 32, 34
PIECE_BLOCKS = 1 << 18
"""Of 32 weights, made at once."""

ODD = np.uint64(0x0101010101010101)
"""The lowest bit of each of eight bytes: odd weights are never -128, which no quantizer makes."""

ODD_SPREAD = 256 / math.sqrt(12)
"""Standard deviation of odd numbers that are evenly spread over -127..127."""

UNKNOWN_SHA256 = "0" * 64
"""Nobody asks these files for their hash."""

DRY_SHAPE = "tiny-llama"


def ensure(wanted: str, folder: Path) -> ModelInfo:
    """Return a model, written where it is not there.

    Args:
        wanted: path of a GGUF file, or the name of a shape that `enginecmp.models.synth_shapes` knows.
        folder: where invented models lie.
    """
    path = path_of(wanted, folder)
    if wanted in SHAPES and not path.exists():
        write(path, wanted)
    return describe(path, name=path.stem, sha256=UNKNOWN_SHA256)


def path_of(wanted: str, folder: Path) -> Path:
    """Return where a model is, or will be."""
    return folder / f"random-{wanted}-q8_0.gguf" if wanted in SHAPES else Path(wanted)


def write(path: Path, like: str, seed: int = 0) -> None:
    """Write a model of random Q8_0 weights; the same arguments give the same bytes.

    Args:
        path: the GGUF file to write.
        like: a name from `SHAPES` that is no tiny one, or a tiny one, which is small enough to be drawn properly.
        seed: every weight comes from it.
    """
    shape = SHAPES[like]
    path.parent.mkdir(parents=True, exist_ok=True)
    if shape.tiny:
        write_synth(path, like=like, quantization="Q8_0", seed=seed)
        return
    # Whose vocabulary is padded to the shape's size: no tokenizer needs to be fetched, and nobody reads the words.
    words = path.with_suffix(".vocabulary")
    write_synth(words, like=DRY_SHAPE, quantization="F32")
    vocabulary = borrowed_fields(read_gguf(words), shape.vocabulary)
    words.unlink()
    tensors = {tensor.name: tensor for tensor in tensors_of(shape)}
    plans = [TensorPlan(name=each.name, shape=each.shape, type=kind_of(each)) for each in tensors.values()]
    random = np.random.Generator(np.random.SFC64(seed))
    write_gguf(
        path,
        fields_of(shape, "Random weights, for measurements of speed.", path.stem, FILE_TYPES["Q8_0"]) + vocabulary,
        plans,
        lambda plan: contents(shape, tensors[plan.name], random),
    )


def kind_of(tensor: SynthTensor) -> str:
    """Return the type of a tensor: Q8_0 for matrices."""
    return "Q8_0" if len(tensor.shape) == 2 else "F32"


def contents(shape: SynthShape, tensor: SynthTensor, random: np.random.Generator) -> Iterator[bytes]:
    """Yield a tensor's bytes in pieces."""
    if tensor.role == "rope_factors":
        yield np.array(llama3_rope_factors(shape), np.float32).tobytes()
    elif len(tensor.shape) == 1:
        mean = 1.0 if tensor.role == "norm" else 0.0
        yield (mean + 0.1 * random.standard_normal(tensor.shape[0], np.float32)).astype(np.float32).tobytes()
    else:
        yield from matrix(tensor.shape[0] * tensor.shape[1] // BLOCK, spread(shape, tensor), random)


def matrix(blocks: int, deviation: float, random: np.random.Generator) -> Iterator[bytes]:
    """Yield so many Q8_0 blocks of weights with a standard deviation."""
    for first in range(0, blocks, PIECE_BLOCKS):
        count = min(PIECE_BLOCKS, blocks - first)
        piece: NDArray[np.uint8] = np.empty((count, BLOCK_BYTES), np.uint8)
        piece[:, :2] = np.array([deviation / ODD_SPREAD], np.float16).view(np.uint8)
        weights = random.integers(0, 2**64, count * BLOCK // 8, np.uint64)
        weights |= ODD
        piece[:, 2:] = weights.view(np.uint8).reshape(count, BLOCK)
        yield piece.tobytes()


def spread(shape: SynthShape, tensor: SynthTensor) -> float:
    """Return the standard deviation of a matrix's weights: attention neither flat nor one-hot, logits of about 2.5."""
    head = 2.5 / math.sqrt(shape.hidden)
    match tensor.role:
        case "embedding":
            return head if shape.tied else 1.0
        case "head":
            return head
        case "residual_out":
            # What all layers add outweighs a tied embedding, or the model would repeat its input for ever.
            total = 2.5 if shape.tied else 2.0
            return total / math.sqrt(2 * shape.layers * tensor.shape[1])
        case "query":
            return 2 / math.sqrt(tensor.shape[1])
        case _:
            return 1 / math.sqrt(tensor.shape[1])
