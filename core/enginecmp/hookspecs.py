"""The hooks: what an engine plugin implements, when each is called and who times it.

docs/hooks.md is the same contract for readers; a test holds the two together.

A plugin is a module (or object) whose functions are decorated with `@enginecmp.hookimpl` and carry the names
below. Implement only what the engine can do. An implementation may leave out parameters that it does not use.
In a worker exactly one plugin is registered, so every call has exactly one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from enginecmp.format.measures import Measure
    from enginecmp.types import Decoding, EngineInfo, LoadOptions, ModelInfo, Probe, Request, Sensor

PROJECT = "enginecmp"
"""pluggy project name and entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Session: TypeAlias = Any
"""Whatever `cmp_load` returned; the host only hands it back."""


@hookspec
def cmp_engine() -> EngineInfo:  # type: ignore[empty-body]
    """Return the engine's static facts.

    Called in a process of its own for every installed plugin, and kept until the plugin, or what is installed,
    changes; so it must be fast, import nothing native and depend on nothing else: read versions with
    `importlib.metadata`. A wrong type, or text that is no line of printable text, makes the plugin broken.
    """


@hookspec(firstresult=True)
def cmp_probe(options: LoadOptions) -> Probe | None:
    """Say whether the engine can run here with these options.

    Called in a worker, never timed. Look for libraries and devices; do not load a model. Cheap checks first:
    `cmp engines` asks every engine and must answer within 1.5 s in all.

    Returns:
        `Probe(ok=True)`, or the reason and the command that fixes it.
    """


@hookspec(firstresult=True)
def cmp_load(model: ModelInfo, options: LoadOptions) -> Session:
    """Load a model and return a session.

    Timed as one piece (phase "load"). On return the weights are resident and the device is idle. The host has
    already checked that the file is a well-formed GGUF.

    Raises:
        UnsupportedModel: architecture or quantization that the engine cannot load.
        UnknownOption: a key in `options.extra` that the engine does not know.
    """


@hookspec(firstresult=True)
def cmp_version(session: Session) -> str | None:
    """Return name and version of what was loaded, where the static facts cannot know them. Optional, never timed.

    For engines that compute elsewhere, a server say: "vLLM 0.32.0". It stands in the manifest and in every table
    instead of `EngineInfo.version`; launches of two versions are never put together.
    """


@hookspec(firstresult=True)
def cmp_decoding(session: Session, decoding: Decoding) -> None:
    """Take in how the ids of the next request are chosen, and what ends it. Optional, never timed.

    Called after `cmp_reset` and before `cmp_prepare`, for a request that is not greedy with a fixed number of tokens,
    and only where `EngineInfo.decoding` names all that it needs. It holds until the next `cmp_reset`, after which
    requests are greedy again. Requests of `cmp_submit` bring their own (`Request.decoding`).

    With `end_ids` the request is over with the first of them that is chosen, which is handed out as its last token:
    `cmp_decode` may end with it, and the worker asks for no more. An engine that hands out text *returns* the number of
    tokens, as ever.

    Raises:
        EngineError: this cannot be done, a JSON Schema that the engine cannot compile, say.
    """


@hookspec(firstresult=True)
def cmp_text(session: Session) -> str | None:
    """Return the text of the request that just ended. Optional, never timed.

    For engines that yield `NO_ID`, where a scenario looks at what was said; the others' ids are turned into text by the
    host.
    """


@hookspec(firstresult=True)
def cmp_prepare(session: Session, token_ids: Sequence[int], output_tokens: int) -> None:
    """Get ready for one request before the clock starts. Optional, never timed.

    Called after `cmp_reset` and before `cmp_prefill` with the same arguments. For engines that take only text:
    turn the ids into text and prove that the engine reads them back as the same ids.

    Raises:
        RoundTripError: it does not; the prompt is refused for this engine.
    """


@hookspec(firstresult=True)
def cmp_prefill(session: Session, token_ids: Sequence[int], output_tokens: int) -> int:  # type: ignore[empty-body]
    """Run the prompt and return the first greedy token id, or the one that `cmp_decoding` asks for.

    Timed: time to first token ends when this returns, so it must return only when the device is done. The KV
    cache is empty (`cmp_reset` came before).

    Args:
        session: from `cmp_load`.
        token_ids: T >= 1 ids in [0, vocabulary).
        output_tokens: how many tokens will be asked for in all, the first included. For engines whose API
            generates in one call; others leave it out of their signature.

    Returns:
        The most likely next id, or `NO_ID` where the API hands out text only.

    Raises:
        ContextOverflow: T + output_tokens - 1 does not fit the session's context, in tokens.
        EngineError: no ids, or one outside the vocabulary (here or in `cmp_prepare`).
    """


@hookspec(firstresult=True)
def cmp_decode(session: Session, n_tokens: int) -> Iterator[int]:  # type: ignore[empty-body]
    """Yield the next `n_tokens` greedy ids, end-of-sequence ignored, unless `cmp_decoding` said otherwise.

    Timed: the worker reads the clock at every yield, so yield each id as soon as a caller could use it, with
    the device done. `n_tokens` >= 1; the first token came from `cmp_prefill`.

    An engine whose API streams text yields `NO_ID` for every chunk. Where a chunk can carry several tokens,
    the generator *returns* (`return total`) the number of tokens generated after the first one, and the
    per-token gaps are reported as absent.
    """


@hookspec(firstresult=True)
def cmp_submit(session: Session, request: Request) -> bool | None:
    """Queue a request in the engine's own continuous batching. Optional; comes with `cmp_step`.

    Called between steps as requests arrive, where `EngineInfo.max_concurrency` is above 1. An engine with nothing in
    flight must take one.

    Returns:
        True: accepted. False: no room now, ask again after the next step.

    Raises:
        ContextOverflow: it can never fit; the others are not touched.
    """


@hookspec(firstresult=True)
def cmp_step(session: Session, wake: int) -> Sequence[tuple[str, int]] | None:
    """Advance every submitted request by one step and return its new (request id, token id) pairs.

    Timed by the worker like a yield: all pairs get one stamp. At most one pair a request. A request that has all its
    `output_tokens` leaves by itself; one whose engine handed out several tokens at once ends with the pair
    (id, `ENDED`), and its per-token gaps are reported as absent. One that may end early, as `Decoding.end_ids` lets it,
    leaves with the token that ends it, or with (id, `ENDED`, number of its tokens). An empty sequence means that
    nothing is in flight, or that no token came yet: an engine that waits for something outside returns when `wake`
    becomes readable, or after some milliseconds, so that others can be submitted.

    Args:
        session: from `cmp_load`.
        wake: descriptor that is readable when another request may have come, to be waited for together with what the
            engine waits for and never to be read; -1 where nobody tells.

    Raises:
        RequestFailed: one request failed and is forgotten; the others are still in flight. After any other error all
            of them count as failed, and `cmp_reset` follows.
    """


@hookspec(firstresult=True)
def cmp_denoise(
    session: Session, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
) -> Iterator[Sequence[tuple[int, int, int]]] | None:
    """Yield what each denoising step of a diffusion model commits. Optional; for models of masked diffusion.

    Timed: the worker reads the clock at every yield, so yield a step when its forward pass is done. The output begins
    as mask tokens behind each prompt, and exactly `steps` steps make ids of all of them, block after block from left to
    right. A step commits the masked positions of the block that are predicted with the most confidence, as evenly over
    the block's steps as can be, the first steps one more; the others stay masked. Likeliest ids, no draws; of equal
    confidences the first position; the mask's own id counts as impossible. `enginecmp.denoising` does all
    of this for an engine that can run a forward pass.

    Args:
        session: from `cmp_load`; `cmp_reset` came before.
        token_ids: B >= 1 prompts of T >= 1 ids each, (B, T), denoised together.
        output_tokens: masked positions behind each prompt.
        steps: forward passes in all, a multiple of the number of blocks.
        block_tokens: positions of a block; divides `output_tokens`.

    Yields:
        (sequence, position, id) of everything that the step committed; positions count from the prompt's beginning.

    Raises:
        ContextOverflow: T + output_tokens does not fit the session's context, in tokens.
        EngineError: the model is none of diffusion, or steps and blocks do not share out the output.
    """


@hookspec(firstresult=True)
def cmp_score(session: Session, token_ids: Sequence[int]) -> NDArray[np.float32] | None:
    """Return the next-token logits at every position of a prompt.

    Called before anything is timed, to hold the engine against the reference. The KV cache is empty.

    Args:
        session: from `cmp_load`.
        token_ids: T >= 1 ids in [0, vocabulary).

    Returns:
        Raw logits or log-probabilities (a constant per row does not matter), shape (T, vocabulary), float32,
        host memory. Row t is the distribution after token_ids[: t + 1]; of a diffusion model, the distribution *at*
        position t given all of token_ids, mask tokens among them.

    Raises:
        ContextOverflow: T is larger than the session's context, in tokens.
    """


@hookspec(firstresult=True)
def cmp_metrics(session: Session) -> Mapping[str, float] | None:
    """Return what only the engine knows of the request that just ended, names with units.

    Called after every request, outside its timed window. Known names: `weights_bytes`, `kv_cache_bytes`,
    `device_prefill_seconds`, `device_decode_seconds`; right after `cmp_load` also `load_parse_seconds`,
    `load_map_seconds` and `load_init_seconds`, parts of the time that it took. Others are kept as they are.
    `engine_cpu_seconds`, the CPU time of the engine's other processes since `cmp_prepare` (or `cmp_reset`, with several
    in flight), is taken out of `foreign_cpu_seconds`. Names under which `cmp` writes what it reads itself (`rss_bytes`,
    `foreign_cpu_seconds` and the others of docs/results-format.md) are refused: the request, or the load, is then an
    error.
    """


@hookspec(firstresult=True)
def cmp_profile(session: Session, token_ids: Sequence[int], n_tokens: int) -> Mapping[str, float] | None:
    """Return seconds per component for a prompt and `n_tokens` steps after its first token. Optional, never compared.

    Called several times with the same lengths, the first time not kept. The components may not add up to more than the
    call took. Keys: embedding, norm, rope, attention, ffn, lm_head, sampling, other.
    """


@hookspec(firstresult=True)
def cmp_operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return one operation of the engine, ready to be called many times. Optional; for the micro scenarios.

    The worker times calls of what is returned, one or several between two readings of the clock, and keeps what the
    last call returned, so that the host can prove that the operation did its work. Whatever is not the operation
    itself (building inputs, looking up functions) belongs before the return.

    Args:
        session: from `cmp_load`.
        kind: "tokenize", "sampling", "matmul", "elementwise", "layer", or one of a scenario's own.
        parameters: for "tokenize" {"direction": "encode", "text": str} (return a list of ids, no special ids
            added) or {"direction": "decode", "token_ids": [...]} (return str); for "sampling" {"token_ids": [...],
            "temperature": float, "top_k": int, "top_p": float, "seed": int} (draw one id from the distribution
            after these ids, computed once beforehand: temperature first, then top-k, then top-p; temperature 0 is
            greedy, top_k 0 and top_p 1 are off); for "matmul" {"rows": m, "inner": k, "columns": n, "method":
            "naive" | "parallel" | "library", "seed": int} (return the (m, n) product of the float32 matrices that
            `enginecmp.matrices` makes); for "elementwise" {"function": "add" | "silu_mul" | "rms_norm" | "softmax" |
            "rope", "rows": m, "length": n, "head_dim": int, "start": int, "rope_base": float, "epsilon": float,
            "seed": int} (return a + b, silu(a) * b, a over its root mean square times b's first row, softmax of a's
            rows, or a's heads turned by positions from `start` on; (m, n), a and b as `enginecmp.vectors` makes them);
            for "layer" {"rows": m, "past": int, "width": n, "heads": int, "kv_heads": int, "head_dim": int,
            "feed_forward": int, "rope_base": float, "epsilon": float, "seed": int} (return the (m, n) hidden states
            behind one layer of llama's shape, from arrays that `enginecmp.layer_tensor` makes: positions from `past`
            on, the cache before them holding `keys` and `values`). Both rotate the pairs (i, i + head_dim / 2). Every
            call of either gives the same answer.

    Returns:
        A callable without arguments, or None where the engine does not offer this operation. It may return an iterator:
        the worker stamps each thing that it yields. A mapping `metrics` on the callable, numbers with their units in
        the names, is read after every sample.
    """


@hookspec(firstresult=True)
def cmp_reset(session: Session) -> None:
    """Empty the KV cache and whatever else one request leaves behind. Called before every request."""


@hookspec(firstresult=True)
def cmp_unload(session: Session) -> None:
    """Free everything. The worker ends soon after."""


@hookspec
def cmp_scenarios() -> Sequence[str]:  # type: ignore[empty-body]
    """Return paths of scenario files (TOML) that the plugin brings; called and kept together with `cmp_engine`.

    A file's name is the scenario's; one that `cmp` brings itself keeps its name.
    """


@hookspec
def cmp_measures() -> Sequence[Measure]:  # type: ignore[empty-body]
    """Return kinds of measurement that the plugin brings; called and kept together with `cmp_engine`.

    A scenario runs one with `kind = "operation"` and its name as `operation`; docs/measures.md says how. A plugin
    may bring no engine. A name that `cmp` has keeps its meaning; of two plugins with one
    name the first by distribution counts.
    """


@hookspec
def cmp_models() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return synthetic models that the plugin brings, for `cmp model synth --like NAME`; kept as `cmp_measures`.

    Returns:
        Name → "package.module:function". The function is called in a process of its own as `function(path=str,
        quantization=str, seed=int, layers=int or None)` and writes a GGUF file, the same bytes for the same arguments.
    """


@hookspec
def cmp_telemetry() -> Sequence[Sensor]:  # type: ignore[empty-body]
    """Return sensors that the plugin brings. Called in the sensors' process, never in the host or a worker.

    A plugin may bring sensors and no engine: it is then found through the same entry-point group and has no
    `cmp_engine`.
    """
