"""Tiny models with random weights for tests: in any shape and type, and with other metadata or tensors than usual."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp.models.ggml_types import GGML_TYPE_NUMBERS, GGML_TYPES
from enginecmp.models.gguf_file import read_gguf
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.info import describe
from enginecmp.models.quantize import FILE_TYPES
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES
from enginecmp.types import ModelInfo

Fields = Mapping[str, tuple[str, Any]]
"""Metadata: key → (GGUF type, value)."""

ARCHITECTURES = ("llama", "qwen2", "phi3", "gpt2")

# Where a block has its float16 scales, and the factor of the second that centres random weights on zero: half of the
# largest quant (ggml's block layouts).
_K_QUANTS: Mapping[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
}

QUANTIZATIONS = (*(name for name in FILE_TYPES if name != "F32"), *_K_QUANTS)
"""The types in which a tiny model can be written, float32 aside."""

TOKEN_IDS = tuple((i * i * 7 + i * 13 + 3) % 251 for i in range(60))
"""60 ids that every tiny vocabulary has, without a pattern."""


def tiny_model(
    folder: Path, architecture: str = "llama", kind: str = "F32", *, seed: int = 0, **shape: Any
) -> ModelInfo:
    """Write a tiny model: 2 layers, hidden 64, 4 heads of 16 over 2, feed-forward 128, vocabulary 314.

    Args:
        folder: gets a file of its own for every shape; one that is there is written again.
        architecture: one of `ARCHITECTURES`.
        kind: of the matrices: "F32" or one of `QUANTIZATIONS`. A K-quant's blocks are 256 weights long, so that with
            one of them hidden is 256, head_dim 64 and feed-forward 512.
        seed: of the weights.
        shape: fields of `SynthShape` that are other than usual, e.g. hidden=576, head_dim=64, tied=True.
    """
    if kind in _K_QUANTS:
        model = tiny_model(folder, architecture, seed=seed, hidden=256, head_dim=64, feed_forward=512, **shape)
        random = np.random.default_rng(seed)
        return changed_model(
            model,
            tensors={
                name: (kind, each.shape, _random_blocks(kind, each.shape, random))
                for name, each in read_gguf(model.path).tensors.items()
                if len(each.shape) == 2
            },
        )
    changes = "-".join(f"{key}{value}" for key, value in sorted(shape.items()))
    name = f"tiny-{architecture}-{kind.lower()}-{changes}-{seed}"
    SHAPES[name] = msgspec.structs.replace(SHAPES[f"tiny-{architecture}"], **shape)
    try:
        return write_synth(folder / f"{name}.gguf", like=name, quantization=kind, seed=seed)
    finally:
        del SHAPES[name]


def changed_model(
    model: ModelInfo,
    fields: Mapping[str, tuple[str, Any]] = {},
    tensors: Mapping[str, NDArray[np.float32] | tuple[str, tuple[int, ...], bytes]] = {},
    without: Collection[str] = (),
) -> ModelInfo:
    """Write a model again, beside it, with something changed.

    Args:
        model: whose file is copied.
        fields: metadata to replace or to add.
        tensors: to replace or to add: float32 values, or (kind, shape, bytes).
        without: tensors or metadata keys to leave out.
    """
    file = read_gguf(model.path)
    content = Path(model.path).read_bytes()
    whole: dict[str, tuple[str, tuple[int, ...], bytes]] = {
        name: (each.type, each.shape, file.raw(name).tobytes())
        for name, each in file.tensors.items()
        if name not in without
    }
    for name, each in tensors.items():
        whole[name] = each if isinstance(each, tuple) else ("F32", each.shape, each.astype(np.float32).tobytes())
    folder = Path(model.path).parent
    path = folder / f"changed-{len(list(folder.iterdir()))}.gguf"
    kept = [content[slice(*span)] for key, span in file.spans.items() if key not in fields and key not in without]
    write_gguf(
        path,
        kept + [field(key, kind, value) for key, (kind, value) in fields.items()],
        [TensorPlan(name=name, shape=shape, type=kind) for name, (kind, shape, _) in whole.items()],
        lambda plan: [whole[plan.name][2]],
    )
    return describe(path)


def _random_blocks(kind: str, shape: tuple[int, ...], random: np.random.Generator) -> bytes:
    """Return random weights of a K-quant with a standard deviation of 1 / sqrt(row length)."""
    import gguf

    number = GGML_TYPE_NUMBERS[kind]
    _, block, block_bytes = GGML_TYPES[number]
    at, minimum_at, centre = _K_QUANTS[kind]
    rows = random.integers(0, 256, (shape[0], shape[1] // block, block_bytes), np.uint8)

    def scaled(scale: float) -> NDArray[np.uint8]:
        for offset, value in ((at, scale), (minimum_at, scale * centre)):
            if offset is not None:
                rows[..., offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        return rows.reshape(shape[0], -1)

    spread = gguf.dequantize(scaled(1e-3), gguf.GGMLQuantizationType(number)).std()
    return scaled(1e-3 / float(spread) / float(np.sqrt(shape[1]))).tobytes()
