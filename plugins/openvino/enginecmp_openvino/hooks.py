"""The engine's hooks (docs/hooks.md). openvino is imported by `cmp_load`, never by this module."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import TYPE_CHECKING

from enginecmp import EngineError, EngineInfo, LoadOptions, ModelInfo, Probe, hookimpl
from enginecmp.plugin_tools.engine_options import EngineOptions
from enginecmp.plugin_tools.folder_plugin import QUANTIZATIONS, folder_of

from .name import ENGINE

if TYPE_CHECKING:
    from .session import Session

WEIGHTS = ("fp32", "int8")
PRECISIONS = ("auto", "f32", "bf16")
KV_CACHES = ("auto", "f32", "f16", "u8")
OPTIONS = ("weights", "precision", "kv_cache")
INSTALL = "cmp plugin install --isolated openvino plugins/openvino"


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's static facts."""
    try:
        version = metadata.version("openvino")
    except metadata.PackageNotFoundError:
        version = "not installed"  # the plugin is sound, cmp_probe says what is missing
    return EngineInfo(
        name=ENGINE,
        version=version,
        licence="Apache-2.0",
        devices=("cpu",),
        architectures=("llama", "qwen2", "phi3", "gpt2"),
        quantizations=QUANTIZATIONS,
        environment={"HF_HUB_OFFLINE": "1", "OPENVINO_TELEMETRY": "0", "TRANSFORMERS_VERBOSITY": "error"},
        tuned="threads, weights (fp32 or int8), precision of activations and of the KV cache",
        tunables={
            "threads": ("auto", "{cores}", "{half_cores}"),
            "weights": WEIGHTS,
            "precision": ("auto", "f32"),
            "kv_cache": ("auto", "f16"),
        },
        limits=(
            "runs an export of the Hugging Face folder: of a quantized GGUF file one that is dequantized to float32, "
            "compressed again only with -o openvino.weights=int8",
            "no batching of its own here: requests run one after the other",
            "the first load of a model exports it, which takes minutes and is kept; the gate's launches pay for it",
        ),
        option_names=OPTIONS,
        reads_hf_folders=True,
        homepage="https://github.com/openvinotoolkit/openvino",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the libraries are here."""
    for name, package in (("openvino", "openvino"), ("optimum", "optimum-intel")):
        if importlib.util.find_spec(name) is None:
            return Probe(ok=False, reason=f"the Python package {package} is not installed", fix=INSTALL)
    if options.device != "cpu":
        return Probe(ok=False, reason=f"device '{options.device}' is not cpu", fix="run with --device cpu")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Export the folder where that was not done yet, then compile it."""
    known = EngineOptions(ENGINE, options, OPTIONS)
    weights = known.choice("weights", WEIGHTS)
    precision, kv_cache = known.choice("precision", PRECISIONS), known.choice("kv_cache", KV_CACHES)
    if options.device != "cpu":
        msg = f"{ENGINE}: expected device cpu, got '{options.device}'; pass --device cpu"
        raise EngineError(msg)
    folder = folder_of(ENGINE, model)

    from .exporting import exported
    from .session import Session

    exact = options.numerics == "exact"
    return Session(
        folder=exported(folder, model.hf_sha256, "fp32" if exact else weights),
        precision="f32" if exact else precision,
        kv_cache="f32" if exact else kv_cache,
        context_tokens=options.context_tokens,
        vocabulary=model.vocabulary,
        threads=options.threads,
    )
