"""What Candle is and whether it can run here; the extension is only imported where the processor can run it."""

from __future__ import annotations

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl
from enginecmp.plugin_tools.rust_plugin import probe_extension

from .options import THREAD_VARIABLES, Settings

CANDLE_VERSION = "0.11.1"
"""The version of candle-core that Cargo.lock pins."""

INSTALL = "pip install ./plugins/candle (needs cargo)"
INSTALL_PORTABLE = "RUSTFLAGS='-C target-cpu=x86-64' pip install --force-reinstall --no-deps ./plugins/candle"
INSTALL_CUDA = "pip install ./plugins/candle --config-settings build-args='--features python,cuda'"

QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)

LIMITS = (
    "One request at a time: the model is written for one sequence.",
    "F16 and BF16 matrices are widened to float32 when they are loaded, which is how Candle multiplies by them.",
    "On cuda always device 0.",
)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts."""
    return EngineInfo(
        name="candle",
        version=CANDLE_VERSION,
        licence="MIT OR Apache-2.0",
        devices=("cpu", "cuda"),
        architectures=("llama", "qwen2", "phi3"),
        quantizations=QUANTIZATIONS,
        max_concurrency=1,
        # The first sets the pool of Candle's own kernels, the second the float32 matrix product's and other loops'.
        environment=dict.fromkeys(THREAD_VARIABLES, "{threads}"),
        tuned=(
            "compiled for x86-64-v3, kernels for AVX2 or AVX-512 chosen at run time; float32 activations and KV cache; "
            "prompts in pieces of 512 tokens"
        ),
        limits=LIMITS,
        option_names=Settings.__struct_fields__,
        homepage="https://github.com/huggingface/candle",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the extension and the processor's instructions, then for the device in the extension."""
    return probe_extension(
        "enginecmp_candle",
        options,
        install=INSTALL,
        install_portable=INSTALL_PORTABLE,
        install_cuda=INSTALL_CUDA,
    )
