"""The engines that are known by name, installed or not, and the one command that brings each."""

from __future__ import annotations

from typing import NamedTuple


class KnownEngine(NamedTuple):
    """One engine that people choose between.

    Attributes:
        name: how it is called on the command line once it is here; of a server, its own name.
        what: it is, in a few words.
        brings: the command that brings it.
        how: "plugin", "isolated plugin" or "server": how it joins a run.
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
    KnownEngine("vllm", "vLLM's server", "pip install vllm", "server"),
    KnownEngine("sglang", "SGLang's server; needs a GPU", "pip install sglang", "server"),
    KnownEngine("tensorrt_llm", "TensorRT-LLM's server; needs an NVIDIA GPU", "pip install tensorrt_llm", "server"),
    KnownEngine("exllamav3", "ExLlamaV3 behind TabbyAPI; needs an NVIDIA GPU", "pip install exllamav3", "server"),
    KnownEngine("ollama", "Ollama's server", "curl -fsSL https://ollama.com/install.sh | sh", "server"),
    KnownEngine("llama-server", "llama.cpp's own server", "brew install llama.cpp", "server"),
)


def joins(engine: KnownEngine) -> str:
    """Return what one writes behind --engines for an engine."""
    return "openai:http://127.0.0.1:PORT/v1" if engine.how == "server" else engine.name
