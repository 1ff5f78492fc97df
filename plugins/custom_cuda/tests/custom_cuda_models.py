"""Tiny models with random weights, in any shape and kind, and with other metadata or tensors than usual."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp import ModelInfo, read_gguf
from enginecmp.models.gguf_write import TensorPlan, field, write_gguf
from enginecmp.models.info import describe
from enginecmp.models.synth import write_synth
from enginecmp.models.synth_shapes import SHAPES

ARCHITECTURES = ("llama", "qwen2", "phi3")
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0")


def tiny_model(
    folder: Path, architecture: str = "llama", kind: str = "F32", *, seed: int = 0, **shape: Any
) -> ModelInfo:
    """Write a tiny model: 2 layers, hidden 64, 4 heads of 16 over 2, feed-forward 128, vocabulary 314.

    Args:
        folder: gets a file of its own for every shape.
        architecture: "llama", "qwen2" (biases, tied head) or "phi3" (fused matrices).
        kind: of the matrices.
        seed: of the weights.
        shape: fields of `SynthShape` that are other than usual, e.g. hidden=576, head_dim=64, tied=True.
    """
    changes = "-".join(f"{key}{value}" for key, value in sorted(shape.items()))
    name = f"tiny-{architecture}-{kind.lower()}-{changes}-{seed}"
    path = folder / f"{name}.gguf"
    SHAPES[name] = msgspec.structs.replace(SHAPES[f"tiny-{architecture}"], **shape)
    try:
        return write_synth(path, like=name, quantization=kind, seed=seed)
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
        fields: metadata to replace or to add: key -> (GGUF type, value).
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
