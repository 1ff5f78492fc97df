"""The engines of ours and their isolated plugins, installed or not, and the one command that brings each.

Servers by name are presets (`enginecmp.plugins.presets`).
"""

from __future__ import annotations

from typing import NamedTuple


class KnownEngine(NamedTuple):
    """One engine that people choose between.

    Attributes:
        name: how it is called on the command line once it is here.
        what: it is, in a few words.
        brings: the command that brings it.
        how: "plugin" or "isolated plugin": how it joins a run.
    """

    name: str
    what: str
    brings: str
    how: str = "plugin"


def _isolated(name: str) -> str:
    return f"cmp plugin install --isolated {name} plugins/{name}"


KNOWN = (
    KnownEngine("pytorch_baseline", "unoptimized PyTorch, the gate's reference", "make setup"),
    KnownEngine("llamacpp", "llama.cpp, in-process", "make setup"),
    KnownEngine("mistralrs", "mistral.rs, in-process", "make setup"),
    KnownEngine("candle", "Candle, in-process; needs cargo", "make setup"),
    KnownEngine("custom_cpu", "CPU kernels of our own; needs cargo", "make setup"),
    KnownEngine("custom_cuda", "CUDA kernels of our own", "make setup"),
    KnownEngine("burn", "Burn, in-process; needs cargo", "make burn"),
    KnownEngine("openai_server", "any server with an OpenAI-compatible endpoint", "make setup"),
    KnownEngine("transformers", "Hugging Face transformers, in-process", _isolated("transformers"), "isolated plugin"),
    KnownEngine("openvino", "OpenVINO, in-process", _isolated("openvino"), "isolated plugin"),
    KnownEngine(
        "onnxruntime_genai", "ONNX Runtime GenAI, in-process", _isolated("onnxruntime_genai"), "isolated plugin"
    ),
)
