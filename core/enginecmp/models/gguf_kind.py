"""Name what a file is where it is no model: other formats, and GGUF files that go with a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# First bytes of what is taken for a GGUF file now and then.
_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer without its content; run 'git lfs pull' in its repository"),
    (b"PK\x03\x04", "a zip archive, as PyTorch checkpoints are; convert the model to GGUF"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"lmgg", "a GGML file from before GGUF; convert the model again"),
    (b"fmgg", "a GGML file from before GGUF; convert the model again"),
    (b"tjgg", "a GGML file from before GGUF; convert the model again"),
    (b"algg", "a LoRA adapter from before GGUF; convert it again"),
    (b"<", "a web page or XML; the download went to a login or error page"),
)


def format_of(start: bytes) -> str:
    """Return what a file that begins with these bytes is, and the next step; empty where nobody knows.

    Args:
        start: its first 24 bytes or more.
    """
    for magic, name in _FORMATS:
        if start.startswith(magic):
            return name
    # safetensors: the length of a JSON header, then the header.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        return "a safetensors file; name its folder, with config.json and tokenizer.json"
    return ""


def companion_of(metadata: Mapping[str, Any], tensors: Iterable[str]) -> str:
    """Return what a GGUF file is that goes with a model and is none, e.g. "a LoRA adapter"; empty for a model.

    Files of before `general.type` are told by their keys and tensors.
    """
    kind, architecture = metadata.get("general.type"), metadata.get("general.architecture")
    names = list(tensors)
    if kind == "imatrix" or "imatrix.chunk_count" in metadata or any(n.endswith(".in_sum2") for n in names):
        return "an importance matrix (imatrix) for quantizing"
    if architecture == "controlvector" or "controlvector.model_hint" in metadata:
        return "a control vector"
    if kind == "adapter" or "adapter.type" in metadata or any(n.endswith((".lora_a", ".lora_b")) for n in names):
        return "a LoRA adapter"
    if kind == "mmproj" or architecture == "clip" or any(n.startswith("v.patch_embd.") for n in names):
        return "a multimodal projector (mmproj)"
    return ""
