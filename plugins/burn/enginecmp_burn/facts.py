"""What Burn is and whether it can run here; the extension is only imported where the processor can run it."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl

from .config import ARCHITECTURES
from .options import THREAD_VARIABLE

BURN_VERSION = "0.22.1"
"""The version of burn that Cargo.lock pins."""

INSTALL = "make burn (needs cargo)"
INSTALL_PORTABLE = "RUSTFLAGS='-C target-cpu=x86-64' pip install --force-reinstall --no-deps ./plugins/burn"
INSTALL_CUDA = "pip install ./plugins/burn --config-settings build-args='--features python,cuda'"

COMPILED_FOR_V3 = b"enginecmp-burn compiled for x86-64-v3"
"""In the extension's file where it needs more than the baseline (`src/python.rs`)."""

CPUINFO = Path("/proc/cpuinfo")
# What rustc's target-cpu=x86-64-v3 assumes beyond the baseline, as Linux spells it (lzcnt is part of abm).
NEEDED_FLAGS = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")

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
        environment={THREAD_VARIABLE: "{threads}"},
        tuned=(
            "compiled for x86-64-v3, matrix products for AVX2, loops for AVX2 or AVX-512; float32 weights, activations "
            "and KV cache; prompts in pieces of 512 tokens"
        ),
        limits=LIMITS,
        homepage="https://github.com/tracel-ai/burn",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the extension and the processor's instructions, then for the device in the extension."""
    spec = importlib.util.find_spec("enginecmp_burn._shim")
    if spec is None or spec.origin is None:
        return Probe(ok=False, reason="its Rust extension is not built", mend=INSTALL)
    # An instruction that the CPU does not have would end the process, so this is settled before the import.
    if (missing := missing_flags()) and COMPILED_FOR_V3 in Path(spec.origin).read_bytes():
        return Probe(
            ok=False,
            reason=f"the extension is compiled for x86-64-v3 and this CPU has no {', '.join(missing)}",
            mend=INSTALL_PORTABLE,
        )
    if options.device == "cpu":
        return Probe(ok=True)
    if options.device != "cuda":
        return Probe(ok=False, reason=f"runs on cpu and cuda, not on {options.device}", mend="pass --device cpu")
    from ._shim import features

    if "cuda" not in features():
        return Probe(ok=False, reason="the extension was built without CUDA", mend=INSTALL_CUDA)
    return Probe(ok=True)


def missing_flags() -> list[str]:
    """Return what this CPU lacks of x86-64-v3; nothing on other architectures or where Linux does not tell."""
    if platform.machine() != "x86_64" or not CPUINFO.exists():
        return []
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return [] if flags is None else [flag for flag in NEEDED_FLAGS if flag not in flags]
