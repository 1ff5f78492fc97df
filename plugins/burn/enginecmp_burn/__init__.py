"""Burn as an engine of enginecmp, through a Rust extension of its own (`_shim`).

The hooks. What the engine is and whether it runs here is in `facts`, what a file asks for in `config`; the model and
its requests are in Rust, under `src/`. Importing this package imports nothing native: `_shim` is imported by
`cmp_probe` and `cmp_load`, after the processor has been checked for the instructions that it is compiled to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from enginecmp import EngineError, LoadOptions, ModelInfo, hookimpl

from .facts import cmp_engine, cmp_probe
from .options import check_threads, read_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._shim import Session

__all__ = [
    "cmp_decode",
    "cmp_engine",
    "cmp_load",
    "cmp_metrics",
    "cmp_prefill",
    "cmp_probe",
    "cmp_reset",
    "cmp_score",
    "cmp_unload",
]


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Widen the weights to float32, one tensor at a time, and make room for `options.context_tokens` positions.

    Raises:
        UnsupportedModel: architecture, tensors or metadata that are not implemented.
        UnknownOption: a key in `options.extra` that does not exist.
        EngineError: the extension does not run here, or the environment says other threads than `options`.
    """
    settings = read_settings(options)
    probe = cmp_probe(options)
    if not probe.ok:
        msg = f"burn: {probe.reason}; {probe.mend}"
        raise EngineError(msg)
    check_threads(options.threads)
    from enginecmp import read_gguf

    from . import _shim
    from .config import read_config

    file = read_gguf(model.path)
    config = read_config(file, options.context_tokens)
    context_tokens, limit = config.position_limit(options.context_tokens)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    return _shim.load(
        config,
        shapes,
        file.float32,
        options.device,
        context_tokens,
        limit,
        settings.prompt_chunk,
        settings.attention == "fused",
    )


@hookimpl
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt, in pieces where it is long, and choose on the device; ends when the id is on the host."""
    return session.prefill(token_ids, output_tokens)


@hookimpl
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:
    """Yield greedy ids, each when it is on the host: one call into Rust a token."""
    for _ in range(n_tokens):
        ids, _ = session.decode(1)
        yield ids[0]


@hookimpl
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Run the prompt as `cmp_prefill` does, with logits at every position."""
    import numpy as np

    return np.frombuffer(session.score(token_ids), np.float32).reshape(len(token_ids), session.vocabulary)


@hookimpl
def cmp_metrics(session: Session) -> Mapping[str, float]:
    """Return sizes, and the times of the last request by Rust's own stamps: a cross-check of the host's clock."""
    return session.metrics()


@hookimpl
def cmp_reset(session: Session) -> None:
    """Start over at position 0; the cache's memory stays."""
    session.reset()


@hookimpl
def cmp_unload(session: Session) -> None:
    """Free weights and cache."""
    session.close()
