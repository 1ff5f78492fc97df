"""A GGUF file as the bare loop of plugins/burn reads it: Burn itself reads no such files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginecmp import read_gguf
from enginecmp.models.decoder import read_decoder


def write_model(path: str | Path, folder: Path, context_tokens: int) -> None:
    """Write every weight as float32 and what the plugin reads of the metadata.

    Args:
        path: the GGUF file.
        folder: gets `weights.f32`, values of all tensors, little-endian, one tensor after the other, and `model.txt`,
            a line for each constant and each tensor.
        context_tokens: tokens that a session shall hold.
    """
    file = read_gguf(path)
    config = read_decoder("burn", file, ("llama", "qwen2", "phi3"), context_tokens)
    lines = [
        f"layers {config.layers}",
        f"width {config.width}",
        f"heads {config.heads}",
        f"kv_heads {config.kv_heads}",
        f"head_dim {config.head_dim}",
        f"epsilon {config.epsilon!r}",
        f"frequencies {' '.join(map(repr, config.rope.frequencies(file)))}",
        f"interleaved {str(config.rope.interleaved).lower()}",
        f"magnitude {config.rope.magnitude!r}",
    ]
    with open(folder / "weights.f32", "wb") as weights:
        for name, tensor in file.tensors.items():
            lines.append(f"tensor {name} {' '.join(map(str, tensor.shape))}")
            weights.write(np.ascontiguousarray(file.float32(name), "<f4").data)
    (folder / "model.txt").write_text("\n".join(lines) + "\n")
