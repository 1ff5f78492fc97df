"""What Burn is and whether it can run here; the extension is only imported where the processor can run it."""

from __future__ import annotations

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl
from enginecmp.plugin_tools.rust_plugin import probe_extension

from .options import THREAD_VARIABLES, Settings

BURN_VERSION = "0.22.1"
"""The version of burn that Cargo.lock pins."""

ARCHITECTURES = ("llama", "qwen2", "phi3")

INSTALL = "make burn (needs cargo)"
INSTALL_PORTABLE = "RUSTFLAGS='-C target-cpu=x86-64' pip install --force-reinstall --no-deps ./plugins/burn"
INSTALL_CUDA = "pip install ./plugins/burn --config-settings build-args='--features python,cuda'"

# Everything that gguf-py can dequantize.
QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4"),
)

LIMITS = (
    "One request at a time: the model is written for one sequence.",
    "Every tensor is widened to float32 when it is loaded: Burn reads no GGUF file, and its CPU backend multiplies by "
    "a quantized matrix by dequantizing all of it each time.",
    "Weights are widened by Python, outside Burn, so load_seconds are those of the conversion as well.",
    "On cuda always device 0.",
)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts."""
    return EngineInfo(
        name="burn",
        version=BURN_VERSION,
        licence="MIT OR Apache-2.0",
        devices=("cpu", "cuda"),
        architectures=ARCHITECTURES,
        quantizations=QUANTIZATIONS,
        max_concurrency=1,
        # The pool of the matrix products and of Burn's own loops.
        environment=dict.fromkeys(THREAD_VARIABLES, "{threads}"),
        tuned=(
            "compiled for x86-64-v3, matrix products for AVX2, loops for AVX2 or AVX-512; float32 weights, activations "
            "and KV cache; prompts in pieces of 512 tokens"
        ),
        limits=LIMITS,
        reads_split_models=True,
        option_names=Settings.__struct_fields__,
        homepage="https://github.com/tracel-ai/burn",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the extension and the processor's instructions, then for the device in the extension."""
    return probe_extension(
        "enginecmp_burn",
        options,
        install=INSTALL,
        install_portable=INSTALL_PORTABLE,
        install_cuda=INSTALL_CUDA,
    )
