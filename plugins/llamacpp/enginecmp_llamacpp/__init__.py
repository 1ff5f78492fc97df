"""llama.cpp as an engine of enginecmp, through the low-level API of llama-cpp-python.

This module holds the hooks and nothing native: `cmp_engine` runs in the host for every command. The rest is in
`options` (what a user may set), `native` (logs, errors, batches), `session` (one request after the other) and
`batching` (many at once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, TypeAlias

from enginecmp import Decoding, EngineError, EngineInfo, LoadOptions, ModelInfo, Probe, Request, hookimpl

from .library import library_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .diffusion import DiffusionSession
    from .session import Session as CausalSession

    Session: TypeAlias = CausalSession | DiffusionSession

INSTALL = "pip install llama-cpp-python"
INSTALL_CUDA = (
    'CMAKE_ARGS="-DGGML_CUDA=on" pip install --force-reinstall --no-cache-dir --no-deps '
    "--no-binary llama-cpp-python llama-cpp-python"
)

# The decoder-only ones of llama.cpp's list that people meet; its full list has over a hundred names.
ARCHITECTURES = (
    "llama", "llama4", "mistral3", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "phi2", "phi3", "phimoe", "gpt2",
    "gptj", "gptneox", "gemma", "gemma2", "gemma3", "gemma3n", "falcon", "mpt", "bloom", "stablelm", "starcoder",
    "starcoder2", "baichuan", "internlm2", "minicpm", "minicpm3", "command-r", "cohere2", "dbrx", "olmo", "olmo2",
    "olmoe", "openelm", "deepseek", "deepseek2", "chatglm", "glm4", "glm4moe", "bitnet", "nemotron", "exaone",
    "exaone4", "granite", "granitemoe", "arcee", "ernie4_5", "smollm3", "gpt-oss", "seed_oss", "apertus",
    "llada", "dream",
)  # fmt: skip
QUANTIZATIONS = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0",
    "MXFP4",
)  # fmt: skip
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ, fixed when llama.cpp is compiled


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts; reads package metadata only."""
    try:
        version = metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        version = "not installed"
    from .options import Settings

    return EngineInfo(
        name="llamacpp",
        version=version,
        licence="MIT",
        devices=("cpu", "cuda"),
        architectures=ARCHITECTURES,
        quantizations=QUANTIZATIONS,
        max_concurrency=MAX_SEQUENCES,
        # ggml names its thread count itself; this keeps OpenMP's pool, and so its spinning, at the same size.
        environment={"OMP_NUM_THREADS": "{threads}"},
        tuned=(
            "what a llama.cpp user gets: a build for this CPU, repacked weights, F16 KV cache, flash attention "
            "where it applies, logical batches of 2048 tokens computed in pieces of 512"
        ),
        option_names=Settings.__struct_fields__,
        tunables={
            "cpu:threads": ("auto", "{cores}", "{half_cores}"),
            "flash_attn": ("auto", "on", "off"),
            "n_ubatch": ("512", "128", "2048"),
            "kv_type": ("f16", "q8_0"),
            "cpu:repack": ("1", "0"),
        },
        operations=("tokenize", "sampling", "matmul", "profile"),
        decoding=("sampling", "end_of_sequence", "json_schema"),
        reads_split_models=True,
        homepage="https://github.com/ggml-org/llama.cpp",
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for the library's files; only for CUDA is the library opened, to ask it for a GPU."""
    folder = library_folder()
    if folder is None:
        return Probe(ok=False, reason="llama-cpp-python is not installed", fix=INSTALL)
    if not any(folder.glob("libllama.*")):
        return Probe(ok=False, reason=f"llama-cpp-python has no libllama in {folder}", fix=INSTALL)
    if options.device == "cpu":
        return Probe(ok=True)
    if options.device != "cuda":
        return Probe(ok=False, reason=f"runs on cpu and cuda, not on {options.device}")
    if not any(folder.glob("libggml-cuda.*")):
        return Probe(ok=False, reason="llama-cpp-python was built without CUDA", fix=INSTALL_CUDA)
    from . import native

    if not native.supports_gpu_offload():
        return Probe(ok=False, reason="llama.cpp finds no CUDA device", fix="check nvidia-smi and the driver")
    return Probe(ok=True)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Load the weights and make one context."""
    from .options import read_settings

    # Before the import below: a misspelt option costs nothing.
    settings = read_settings(options)
    from . import diffusion, session

    if model.architecture in diffusion.ARCHITECTURES:
        return diffusion.DiffusionSession(model, options, settings)
    return session.Session(model, options, settings)


@hookimpl
def cmp_decoding(session: Session, decoding: Decoding) -> None:
    """Choose ids by a chain of llama.cpp's samplers and its grammar; the worker ends a request at its last id."""
    session.decode_by(decoding)


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt in pieces of n_batch tokens; logits of the last position only."""
    return session.prefill(token_ids, output_tokens)


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield greedy ids, each after llama.cpp is done and its logits are on the host."""
    return session.decode(n_tokens)


@hookimpl
def cmp_denoise(
    session: DiffusionSession, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[Sequence[tuple[int, int, int]]]:
    """Yield what each denoising step commits; all sequences are one batch of llama.cpp's."""
    if not hasattr(session, "denoise"):
        msg = (
            "llamacpp: expected a diffusion model (llada, dream) to denoise with, got one that predicts the next token"
        )
        raise EngineError(msg)
    return session.denoise(token_ids, output_tokens, steps, block_tokens)


@hookimpl
def cmp_submit(session: Session, request: Request) -> bool:
    """Give the request a sequence of its own, or say that all are taken."""
    return session.batching.submit(request)


@hookimpl
def cmp_step(session: Session) -> Sequence[tuple[str, int]]:
    """Decode one batch: one token of every running request, then as much of waiting prompts as fits."""
    return session.batching.step()


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Run the prompt with logits on every position."""
    return session.score(token_ids)


@hookimpl
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return llama.cpp's tokenizer, a chain of its samplers, or ggml's product of two matrices."""
    from .operations import operation

    # A diffusion model's weights as an autoregressive one have the same vocabulary and shapes.
    causal: Any = getattr(session, "causal", session)
    return operation(causal, kind, parameters)


@hookimpl
def cmp_profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float] | None:
    """Return seconds per component, by llama.cpp's own callback where one ends and the next begins."""
    return session.profile(token_ids, n_tokens)


@hookimpl
def cmp_metrics(session: Session) -> Mapping[str, float]:
    """Return sizes and llama.cpp's own timers; see `Session.metrics`."""
    return session.metrics()


@hookimpl
def cmp_reset(session: Session) -> None:
    """Empty the KV cache, drop requests in flight and zero llama.cpp's timers."""
    session.reset()


@hookimpl
def cmp_unload(session: Session) -> None:
    """Free context and model."""
    session.close()
