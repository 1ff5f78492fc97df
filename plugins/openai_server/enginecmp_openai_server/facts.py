"""What a server behind an endpoint is, as far as it can be said before one is asked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from enginecmp import EngineInfo, LoadOptions, Probe, Sensor, hookimpl

from .address import EXAMPLE

# A server may serve anything; these are the architectures and tensor types of GGUF that people meet.
ARCHITECTURES = (
    *("llama", "llama4", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "qwen3next", "phi2", "phi3", "phimoe"),
    *("gpt2", "gptneox", "gemma", "gemma2", "gemma3", "gemma3n", "falcon", "mpt", "bloom", "stablelm", "starcoder"),
    *("starcoder2", "internlm2", "minicpm", "command-r", "cohere2", "dbrx", "olmo", "olmo2", "olmoe", "deepseek"),
    *("deepseek2", "chatglm", "glm4", "glm4moe", "nemotron", "exaone", "exaone4", "granite", "granitemoe", "smollm3"),
    *("gpt-oss", "seed_oss", "apertus", "ernie4_5", "arcee", "lfm2"),
)
QUANTIZATIONS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4"),
)
MAX_CONCURRENCY = 1024

LIMITS = (
    "The served weights cannot be hashed. That they are the file of this run is held by the equivalence gate where the "
    "server can be scored, by a start command that names {model}, or by the user's word alone (trust_model=yes).",
    "The device, the threads and the numerics are the server's own: --device only says where the user runs it, and "
    "options reach the server through its start command only.",
    "Every time contains the way there and back: HTTP, JSON, the server's own queue and its detokenizer.",
    "Times are those of streamed chunks. Where chunks are fewer than tokens per-token gaps are absent; the time to "
    "first token ends with the first chunk that has content.",
    "The last token of a request counts as there when the server has confirmed its count.",
    "Servers that take text only: the prompt is proven to read back as the given ids by the server's own tokenizer "
    "where "
    "it offers one, by the model file's tokenizer and the server's count otherwise.",
    "Prefix caches are avoided per request where the server offers it (llama-server, vLLM, SGLang, llama-cpp-python); "
    "elsewhere the server must be started without one.",
    "Not comparable unless the server gives the log-probabilities of the whole vocabulary by token id (llama-server; "
    "vLLM with --max-logprobs -1; SGLang).",
)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts; the server's own name and version are told by `cmp_probe` and `cmp_version`."""
    try:
        version = metadata.version("enginecmp-openai-server")
    except metadata.PackageNotFoundError:
        version = "not installed"
    from .options import KEYS
    from .presets import presets

    return EngineInfo(
        name="openai_server",
        version=f"client {version}",
        licence="Apache-2.0",
        devices=("cpu", "cuda", "metal", "vulkan", "rocm"),
        architectures=ARCHITECTURES,
        quantizations=QUANTIZATIONS,
        max_concurrency=MAX_CONCURRENCY,
        tuned="whatever the server was started with; say it in the start command, so that the manifest has it",
        limits=LIMITS,
        decoding=("sampling", "end_of_sequence", "json_schema"),
        reads_split_models=True,
        option_names=KEYS,
        remote=True,
        presets=presets(),
    )


@hookimpl
def cmp_telemetry() -> Sequence[Sensor]:
    """Return the sensor that reads a server's own metrics."""
    from .sensor import ServerSensor

    return [ServerSensor()]


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Say whether the options lead to a server that answers, or to one that can be started.

    Options that carry a secret are refused here, before anything is written into a manifest.
    """
    if not options.extra.get("url"):
        return Probe(ok=False, reason="it has no server's address", fix=f"--engines openai:{EXAMPLE}")
    from . import probing

    return probing.probe(options)
