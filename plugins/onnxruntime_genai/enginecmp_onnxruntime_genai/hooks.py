"""The engine's hooks (docs/hooks.md). onnxruntime_genai is imported by `cmp_load`, never by this module."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from enginecmp import EngineError, EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp.plugin_tools.engine_options import EngineOptions
from enginecmp.plugin_tools.folder_plugin import QUANTIZATIONS, folder_of

from .name import ENGINE

if TYPE_CHECKING:
    from .session import Session

WEIGHTS = ("fp32", "int8", "int4")
ACTIVATIONS = ("int8", "fp32")
HEADS = ("last", "all")
OPTIONS = ("weights", "activations", "head")
INSTALL = "cmp plugin install --isolated onnxruntime_genai plugins/onnxruntime_genai"


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's static facts."""
    try:
        version = metadata.version("onnxruntime-genai")
    except metadata.PackageNotFoundError:
        version = "not installed"  # the plugin is sound, cmp_probe says what is missing
    return EngineInfo(
        name=ENGINE,
        version=version,
        licence="MIT",
        devices=("cpu",),
        architectures=("llama", "qwen2", "phi3"),
        quantizations=QUANTIZATIONS,
        environment={"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        tuned="threads, weights (fp32, int8 or int4), activations in front of quantized weights",
        tunables={
            "threads": ("auto", "{cores}", "{half_cores}"),
            "weights": WEIGHTS,
            "activations": ACTIVATIONS,
        },
        limits=(
            "runs an export of the Hugging Face folder: of a quantized GGUF file one that is dequantized to float32, "
            "quantized again only with -o onnxruntime_genai.weights=int8 or int4",
            "a model with a sliding window runs within one window; llama with other rope_types than llama3 is refused",
            "no batching of its own here: its engine for many requests needs paged attention, which is for CUDA alone",
            "the first load of a model exports it, which may take minutes and is kept; the gate's launches pay for it",
        ),
        option_names=OPTIONS,
        reads_hf_folders=True,
        homepage="https://github.com/microsoft/onnxruntime-genai",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the libraries are here."""
    for name, package in (("onnxruntime_genai", "onnxruntime-genai"), ("onnx_ir", "onnx-ir"), ("torch", "torch")):
        if importlib.util.find_spec(name) is None:
            return Probe(ok=False, reason=f"the Python package {package} is not installed", fix=INSTALL)
    if options.device != "cpu":
        return Probe(ok=False, reason=f"device '{options.device}' is not cpu", fix="run with --device cpu")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Export the folder where that was not done yet, then load it."""
    known = EngineOptions(ENGINE, options, OPTIONS)
    weights, activations = known.choice("weights", WEIGHTS), known.choice("activations", ACTIVATIONS)
    head = known.choice("head", HEADS)
    if options.device != "cpu":
        msg = f"{ENGINE}: expected device cpu, got '{options.device}'; pass --device cpu"
        raise EngineError(msg)
    folder = folder_of(ENGINE, model)

    from .building import built, window_of
    from .session import Session

    exact = options.numerics == "exact"
    return Session(
        folder=built(folder, model.hf_sha256, "fp32" if exact else weights, activations, head),
        context_tokens=min(options.context_tokens, window_of(Path(folder)) or options.context_tokens),
        threads=options.threads,
    )
