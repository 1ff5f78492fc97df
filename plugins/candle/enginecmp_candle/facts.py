"""What Candle is and whether it can run here; the extension is only imported where the processor can run it."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl

from .options import THREAD_VARIABLES

CANDLE_VERSION = "0.11.1"
"""The version of candle-core that Cargo.lock pins."""

INSTALL = "pip install ./plugins/candle (needs cargo)"
INSTALL_PORTABLE = "RUSTFLAGS='-C target-cpu=x86-64' pip install --force-reinstall --no-deps ./plugins/candle"
INSTALL_CUDA = "pip install ./plugins/candle --config-settings build-args='--features python,cuda'"

COMPILED_FOR_V3 = b"enginecmp-candle compiled for x86-64-v3"
"""In the extension's file where it needs more than the baseline (`src/python.rs`)."""

CPUINFO = Path("/proc/cpuinfo")
# What rustc's target-cpu=x86-64-v3 assumes beyond the baseline, as Linux spells it (lzcnt is part of abm).
NEEDED_FLAGS = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")

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
        homepage="https://github.com/huggingface/candle",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the extension and the processor's instructions, then for the device in the extension."""
    spec = importlib.util.find_spec("enginecmp_candle._shim")
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
