"""The engine custom_cuda: CUDA kernels of our own, compiled where they run; without a GPU, run by an emulated driver.

This module holds the hooks and nothing native: `cmp_engine` runs in the host for every command. The rest is in
`options` (what a user may set), `facts` (can it run here), `config` and `weights` (what a file holds, and how it lies
on the device), `kernels` (CUDA C++), `compiling`, `device` (the driver), and `engine` (sessions, steps, batching,
sampling).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from enginecmp import EngineInfo, LoadOptions, ModelInfo, Probe, Request, hookimpl

from .options import MAX_SEQUENCES, Settings, read_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .engine.session import Session

DISTRIBUTION = "enginecmp-custom-cuda"

LIMITS = (
    "On cuda always device 0.",
    "Decoder-only models of the architectures llama, qwen2 and phi3.",
    "Prompts by default (gemm=auto): by cuBLASLt in bfloat16 from compute capability 9.0 on where it is installed and "
    "its copy of the weights fits, else by own kernels; the metric library_weights_bytes is 0 with those.",
    "Device emulated runs the same kernels on the CPU to prove what they compute; its speed says nothing.",
)


@hookimpl
def cmp_engine() -> EngineInfo:
    """Return the static facts; reads package metadata only."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "not installed"
    return EngineInfo(
        name="custom_cuda",
        version=version,
        licence="Apache-2.0",
        devices=("cuda", "emulated"),
        architectures=("llama", "qwen2", "phi3"),
        quantizations=("F32", "F16", "BF16", "Q8_0", "Q4_0"),
        max_concurrency=MAX_SEQUENCES,
        tuned=(
            "kernels compiled for this GPU when it is first used; a step is one CUDA graph whose kernels overlap, "
            "eight steps in flight; activations in 8 bits where weights are, F16 KV cache"
        ),
        option_names=Settings.__struct_fields__,
        tunables={
            "cuda:decoder": ("graph", "persistent"),
            "cuda:ahead": ("8", "2", "32"),
            "cuda:overlap": ("1", "0"),
            "cuda:prefill_chunk": ("512", "1024", "2048"),
        },
        operations=("sampling", "profile"),
        limits=LIMITS,
        reads_split_models=True,
    )


@hookimpl
def cmp_probe(options: LoadOptions) -> Probe:
    """Look for a driver and a GPU, or for the compiler that the emulated device needs."""
    from .facts import probe

    return probe(options)


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Load the weights, compile or fetch the kernels, make room for keys and values."""
    # Before the import below: a misspelt option costs nothing.
    settings = read_settings(options)
    from .engine.session import open_session

    return open_session(model, options, settings)


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt in chunks; ends when the device has chosen the first id and the host has it."""
    return session.prefill(token_ids, output_tokens)


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield greedy ids, each as soon as the device has written it to memory that the host reads."""
    return session.decode(n_tokens)


@hookimpl
def cmp_submit(session: Session, request: Request) -> bool:
    """Give the request a slot and the promise of its pages, or say that there are none now."""
    return session.batching.submit(request)


@hookimpl
def cmp_step(session: Session) -> Sequence[tuple[str, int]]:
    """Advance every running request by one token, and a waiting prompt by one chunk."""
    return session.batching.step()


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Score with the kernels that prompts run through, then with those that generate; see `Session.score`."""
    return session.score(token_ids)


@hookimpl
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the sampling kernels, ready to draw from the distribution after some ids."""
    if kind != "sampling":
        return None
    from .engine.sampling.sampling import strategy_of

    return session.draws_after(parameters["token_ids"], strategy_of(parameters)).draw


@hookimpl
def cmp_profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float] | None:
    """Return seconds per component, by CUDA events around the launches of each."""
    from .engine.profile import profile

    return profile(session, token_ids, n_tokens)


@hookimpl
def cmp_metrics(session: Session) -> Mapping[str, float]:
    """Return sizes, and the times of the last request by CUDA events; see `Session.metrics`."""
    return session.metrics()


@hookimpl
def cmp_reset(session: Session) -> None:
    """Give all pages back and drop requests in flight; memory stays allocated."""
    session.reset()


@hookimpl
def cmp_unload(session: Session) -> None:
    """Free everything on the device."""
    session.close()
