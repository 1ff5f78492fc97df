"""The engine custom_cpu: kernels of our own for the CPU, in Rust, without a machine-learning library.

The hooks. What the engine is and whether it runs here is in `facts`, what a user may set in `options`; the model and
its requests are in Rust, under `src/`, its kernels under `kernels/`. Importing this package imports nothing native.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from enginecmp import Decoding, EngineError, LoadOptions, ModelInfo, Request, hookimpl

from .facts import cmp_engine, cmp_probe
from .loaded import LoadedModel
from .options import read_settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["cmp_engine", "cmp_probe"]


@hookimpl
def cmp_load(model: ModelInfo, options: LoadOptions) -> LoadedModel:
    """Map the file, pack its matrices and start the threads.

    Raises:
        UnsupportedModel: architecture, tensor type or metadata that is not implemented.
        UnknownOption: a key in `options.extra` that does not exist.
        EngineError: an option's value, or the extension is not there.
    """
    settings = read_settings(options)
    probe = cmp_probe(options)
    if not probe.ok:
        msg = f"custom_cpu: {probe.reason}; {probe.fix}"
        raise EngineError(msg)
    from . import _shim

    session = _shim.load(
        model.path,
        threads=options.threads,
        context_tokens=options.context_tokens,
        max_sequences=options.max_sequences,
        prompt_chunk=settings.prompt_chunk,
        kv_type=settings.kv_type,
        sliding_window=settings.sliding_window,
        context_shift=settings.context_shift,
        prefix_cache=settings.prefix_cache,
        draft=settings.draft or None,
        lookup=settings.lookup,
        draft_tokens=settings.draft_tokens,
        packs_at_load=settings.packing == "load",
    )
    return LoadedModel(session, model.path, options.threads)


@hookimpl
def cmp_decoding(session: LoadedModel, decoding: Decoding) -> None:
    """Draw ids in Rust; the worker ends a request at its last id."""
    session.session.decode_by(_strategy(decoding))


def _strategy(decoding: Decoding) -> tuple[float, int, float, int] | None:
    """Return how ids are drawn; None where they are the most likely ones."""
    if not decoding.temperature:
        return None
    return decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed


@hookimpl
def cmp_prefill(session: LoadedModel, token_ids: Sequence[int], output_tokens: int) -> int:
    """Run the prompt, in pieces where it is long; ends with the first greedy id."""
    return session.session.prefill(token_ids, output_tokens)


@hookimpl
def cmp_decode(session: LoadedModel, n_tokens: int) -> Iterator[int]:
    """Yield greedy ids: one call into Rust a token.

    With `draft` or `lookup` a pass may give several; those after the first are yielded without computing anything.
    """
    decode = session.session.decode
    for _ in range(n_tokens):
        ids, _ = decode(1)
        yield ids[0]


@hookimpl
def cmp_submit(session: LoadedModel, request: Request) -> bool:
    """Take the request in, or say that as many as there may be are in flight."""
    strategy, end_ids = _strategy(request.decoding), request.decoding.end_ids
    return session.session.submit(request.id, request.token_ids, request.output_tokens, strategy, end_ids)


@hookimpl
def cmp_step(session: LoadedModel) -> Sequence[tuple[str, int]]:
    """Compute one pass: the next token of every running request, and as much of waiting prompts as fits."""
    return session.session.step()


@hookimpl
def cmp_score(session: LoadedModel, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Run the prompt as `cmp_prefill` does, with logits at every position."""
    import numpy as np

    scores = session.session.score(token_ids)
    return np.frombuffer(scores, np.float32).reshape(len(token_ids), session.session.vocabulary)


@hookimpl
def cmp_operation(session: LoadedModel, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return the host's tokenizer, draws from the distribution after some ids, or a product by the kernels."""
    from .operations import operation

    return operation(session, kind, parameters)


@hookimpl
def cmp_profile(session: LoadedModel, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float]:
    """Return seconds per component, by a clock that is read where one ends and the next begins."""
    return session.session.profile(token_ids, n_tokens)


@hookimpl
def cmp_metrics(session: LoadedModel) -> Mapping[str, float]:
    """Return sizes, the times of the last request by Rust's own stamps, and what speculation brought."""
    return session.session.metrics()


@hookimpl
def cmp_reset(session: LoadedModel) -> None:
    """Drop all requests; memory stays, and so does what `prefix_cache=on` keeps."""
    session.session.reset()


@hookimpl
def cmp_unload(session: LoadedModel) -> None:
    """Free weights and cache, end the threads."""
    session.session.close()
