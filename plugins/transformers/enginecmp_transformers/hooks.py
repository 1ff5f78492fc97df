"""The engine's hooks (docs/hooks.md). torch and transformers are imported by `cmp_load`, never by this module."""

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

DEVICES = ("cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager")
CACHES = ("dynamic", "static")
OPTIONS = ("dtype", "attention", "cache")
INSTALL = "cmp plugin install --isolated transformers plugins/transformers"


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the engine's static facts."""
    try:
        version = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        version = "not installed"  # the plugin is sound, cmp_probe says what is missing
    return EngineInfo(
        name=ENGINE,
        version=version,
        licence="Apache-2.0",
        devices=DEVICES,
        architectures=("llama", "qwen2", "phi3", "gpt2"),
        quantizations=QUANTIZATIONS,
        environment={
            "OMP_NUM_THREADS": "{threads}",
            "MKL_NUM_THREADS": "{threads}",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        },
        tuned="threads, dtype, attention (sdpa or eager) and cache (dynamic or static)",
        tunables={
            "cpu:threads": ("auto", "{cores}", "{half_cores}"),
            "attention": ATTENTION,
            "cache": CACHES,
            "dtype": ("auto", "bfloat16"),
        },
        limits=(
            "reads a Hugging Face folder: of a quantized GGUF file one that is dequantized to float32, so that a token "
            "reads 4 bytes a weight whatever the file holds",
            "no batching of its own here: requests run one after the other",
            "LongRoPE: the second set of factors is taken once a request is longer than the original context, where "
            "GGUF engines decide it for the whole session",
        ),
        option_names=OPTIONS,
        reads_hf_folders=True,
        homepage="https://github.com/huggingface/transformers",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the libraries and the device are here; torch is imported only to ask for a CUDA device."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            return Probe(ok=False, reason=f"the Python package {name} is not installed", fix=INSTALL)
    if options.device not in DEVICES:
        return Probe(ok=False, reason=f"device '{options.device}' is not one of {', '.join(DEVICES)}")
    if options.device == "cuda" and not Path("/proc/driver/nvidia/version").exists():
        return Probe(ok=False, reason="no NVIDIA driver is loaded", fix="run with --device cpu")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Load the folder with `from_pretrained`, its weights resident, the device idle."""
    known = EngineOptions(ENGINE, options, OPTIONS)
    dtype = known.choice("dtype", DTYPES)
    attention, cache = known.choice("attention", ATTENTION), known.choice("cache", CACHES)
    if options.device not in DEVICES:
        msg = f"{ENGINE}: expected a device among {', '.join(DEVICES)}, got '{options.device}'; pass --device cpu"
        raise EngineError(msg)
    folder = folder_of(ENGINE, model)

    from .session import Session

    return Session(
        folder=folder,
        device=options.device,
        dtype="float32" if options.numerics == "exact" else dtype,
        attention=attention,
        static=cache == "static",
        context_tokens=options.context_tokens,
        threads=options.threads,
    )
