"""What the engine is and whether it can run here."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl

from .options import MAX_SEQUENCES

DISTRIBUTION = "enginecmp-custom-cpu"
INSTALL = "pip install ./plugins/custom_cpu (needs cargo)"

LIMITS = (
    "Prompts and decoding round activations to 8 bits where weights are quantized; F32, F16 and BF16 weights are "
    "multiplied in float32.",
    "The operation tokenize is the host's own tokenizer.",
)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts; reads package metadata only."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "not installed"
    return EngineInfo(
        name="custom_cpu",
        version=version,
        licence="Apache-2.0",
        devices=("cpu",),
        architectures=("llama", "qwen2", "phi3", "gpt2"),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"),
        max_concurrency=MAX_SEQUENCES,
        tuned=(
            "kernels for this processor's instructions, chosen when it is loaded; weights packed in their order; "
            "activations in 8 bits where weights are quantized, F16 KV cache in pages, prompts in pieces of 512 tokens"
        ),
        tunables={
            "threads": ("auto", "{cores}", "{half_cores}"),
            "prompt_chunk": ("512", "128", "2048"),
            "kv_type": ("f16", "q8_0"),
            "lookup": ("0", "3"),
        },
        operations=("tokenize", "sampling", "matmul", "elementwise", "layer", "profile"),
        decoding=("sampling", "end_of_sequence"),
        limits=LIMITS,
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the extension, which runs on every processor that it was built for."""
    if options.device != "cpu":
        return Probe(ok=False, reason=f"runs on cpu, not on {options.device}", fix="pass --device cpu")
    if importlib.util.find_spec("enginecmp_custom_cpu._shim") is None:
        return Probe(ok=False, reason="its Rust extension is not built", fix=INSTALL)
    return Probe(ok=True)
