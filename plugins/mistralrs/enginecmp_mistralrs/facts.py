"""What mistral.rs is and whether it can run here; nothing native is imported."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping

from enginecmp import EngineInfo, LoadOptions, Probe, hookimpl

HOMEPAGE = "https://github.com/EricLBuehler/mistral.rs"
INSTALL = "pip install 'mistralrs>=0.9.5'"
THREAD_VARIABLES = ("CANDLE_NUM_THREADS", "RAYON_NUM_THREADS")
KV_F32_VARIABLE = "MISTRALRS_CPU_KV_F32"

# The wheel's own registry of GGUF architectures; anything else is "Unknown normal-model GGUF architecture".
ARCHITECTURES = (
    "llama",
    "mistral3",
    "gemma",
    "gemma2",
    "phi2",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3",
    "qwen3moe",
    "qwen3next",
    "qwen35",
    "qwen35moe",
    "starcoder2",
    "deepseek2",
    "glm4",
    "glm4moe",
    "smollm3",
    "granite",
    "granitemoe",
    "granitehybrid",
    "gpt-oss",
    "hunyuan-dense",
    "hunyuan-moe",
    "lfm2",
    "lfm2moe",
)

QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)

LIMITS = (
    "Prompts are text: each is proven to read back as the given token ids before the clock starts, or refused.",
    "Token ids are not handed out; the engine streams text, so agreement of output is checked by cmp_score only.",
    "A streamed chunk can hold several tokens (special tokens and parts of a character have no text of their own): "
    "when chunks are fewer than tokens, per-token gaps are absent and the time to first token is an upper bound.",
    "Teacher-forced distributions come from one request per prefix (log-probabilities of the whole vocabulary), so "
    "scoring T positions prefills T prompts; a prefix that is no text by itself is reached by generating its last "
    "tokens under a logit bias, which is taken out again.",
    "Probabilities that underflow float32 are scored as log-probability -104.",
    "Llama files whose rope.dimension_count is less than a head are computed as if the whole head turned.",
    "The device is fixed by the installed wheel, and on CUDA is always device 0.",
    "The KV cache's size is not reported; its type is float16 on CPUs with AVX2 and F16C unless float32 is asked for.",
    "One request at a time: on CPU the engine's own batching of equal-length prompts fails in 0.9.5; on CUDA it is "
    "not driven yet.",
)


def installed_version() -> str:
    """Return the version of the installed wheel, its local part ("+cuda130.sm90") included, or ""."""
    try:
        return importlib.metadata.version("mistralrs")
    except importlib.metadata.PackageNotFoundError:
        return ""


CHOICES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cpu": {"dtype": ("auto", "f32", "f16", "bf16"), "kv": ("auto", "f32")},
    "cuda": {"dtype": ("auto", "f32", "f16", "bf16"), "paged_attn": ("auto", "off")},
}
"""Engine options by device, the default of each first."""


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts of mistral.rs."""
    return EngineInfo(
        name="mistralrs",
        version=installed_version() or "not installed",
        licence="MIT",
        devices=("cpu", "cuda"),
        architectures=ARCHITECTURES,
        quantizations=QUANTIZATIONS,
        max_concurrency=1,
        option_names=tuple(dict.fromkeys(key for choices in CHOICES.values() for key in choices)),
        environment={
            # The first sets the pool of Candle's kernels, the second every other loop's (rayon).
            **dict.fromkeys(THREAD_VARIABLES, "{threads}"),
            "RUST_LOG": "off",
            # A GGUF that names its base model must not make loading a matter of the network.
            "HF_HUB_OFFLINE": "1",
        },
        exact_environment={KV_F32_VARIABLE: "1"},
        tuned="The wheel as published: it picks its AVX2 or AVX-512 kernels at run time; on CUDA the wheel built for "
        "the device's compute capability.",
        tunables={
            "cpu:threads": ("auto", "{cores}", "{half_cores}"),
            "dtype": ("auto", "f32", "bf16"),
            "cpu:kv": ("auto", "f32"),
            "cuda:paged_attn": ("auto", "off"),
        },
        operations=("tokenize",),
        limits=LIMITS,
        homepage=HOMEPAGE,
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether an installed wheel fits the asked-for device."""
    version = installed_version()
    if not version or importlib.util.find_spec("mistralrs") is None:
        return Probe(ok=False, reason="the mistralrs wheel is not installed", fix=INSTALL)
    has_cuda = "+cuda" in version
    if options.device == "cuda":
        if not has_cuda:
            return Probe(
                ok=False,
                reason=f"mistralrs {version} is the CPU wheel, and a wheel's device is fixed",
                fix=cuda_install(version),
            )
        if cuda_devices() == 0:
            return Probe(
                ok=False,
                reason=f"mistralrs {version} sees no CUDA device and would fall back to the CPU silently",
                fix="check the driver with nvidia-smi and that CUDA_VISIBLE_DEVICES is unset or names a device",
            )
    elif options.device == "cpu":
        if has_cuda and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            return Probe(
                ok=False,
                reason=f"mistralrs {version} is a CUDA wheel and runs on device 0 whatever is asked",
                fix="set CUDA_VISIBLE_DEVICES= (empty), or use an environment with the CPU wheel",
            )
    else:
        return Probe(ok=False, reason=f"device '{options.device}' is not one of cpu, cuda", fix="pass --device cpu")
    return Probe(ok=True)


def cuda_install(version: str) -> str:
    """Return the line that installs the CUDA wheel of a version; it is published beside the releases only."""
    plain = version.partition("+")[0]
    return f'pip install "mistralrs=={plain}+cuda130.sm90" --find-links {HOMEPAGE}/releases/expanded_assets/v{plain}'


def cuda_devices() -> int:
    """Return how many CUDA devices the driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
