"""A GGUF file as the bare loop of plugins/burn reads it: Burn itself reads no such files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from enginecmp import read_gguf


def write_model(path: str | Path, folder: Path, context_tokens: int) -> None:
    """Write every weight as float32 and what the plugin reads of the metadata.

    Args:
        path: the GGUF file.
        folder: gets `weights.f32`, values of all tensors, little-endian, one tensor after the other, and `model.txt`,
            a line for each constant and each tensor.
        context_tokens: tokens that a session shall hold.
    """
    from enginecmp_burn.config import read_config

    file = read_gguf(path)
    config = read_config(file, context_tokens)
    lines = [
        f"layers {config.layers}",
        f"width {config.width}",
        f"heads {config.heads}",
        f"kv_heads {config.kv_heads}",
        f"head_dim {config.head_dim}",
        f"epsilon {config.epsilon!r}",
        f"frequencies {' '.join(map(repr, config.frequencies))}",
        f"interleaved {str(config.interleaved).lower()}",
        f"magnitude {config.magnitude!r}",
        f"unread {' '.join(config.unread)}",
    ]
    with open(folder / "weights.f32", "wb") as weights:
        for name, tensor in file.tensors.items():
            lines.append(f"tensor {name} {' '.join(map(str, tensor.shape))}")
            weights.write(np.ascontiguousarray(file.float32(name), "<f4").data)
    (folder / "model.txt").write_text("\n".join(lines) + "\n")
