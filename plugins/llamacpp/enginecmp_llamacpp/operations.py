"""Single operations of llama.cpp for the micro scenarios: its tokenizer, its samplers, ggml's matrix product."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from enginecmp import EngineError

from . import ggml
from .native import lib
from .sampling import sampler_chain

if TYPE_CHECKING:
    from .session import Session


def operation(session: Session, kind: str, parameters: Mapping[str, Any]) -> Callable[[], Any] | None:
    """Return an operation ready to be called, or None where llama.cpp has none of that kind."""
    if kind == "tokenize":
        if parameters["direction"] == "encode":
            return _encode(session, parameters["text"])
        return _decode(session, parameters["token_ids"])
    if kind == "sampling":
        return _sampling(session, parameters)
    # ggml's backends choose their product kernels by weight type and shape; only the CPU's is built by hand here.
    if kind == "matmul" and parameters["method"] != "naive" and session.device == "cpu":
        threads = session.threads if parameters["method"] == "parallel" else 1
        rows, inner, columns, seed = (parameters[name] for name in ("rows", "inner", "columns", "seed"))
        return ggml.product(rows, inner, columns, seed, threads)
    return None


def _encode(session: Session, text: str) -> Callable[[], list[int]]:
    raw = text.encode()
    vocabulary, tokenize = session.vocabulary_handle, lib.llama_tokenize
    capacity = len(raw) + 8  # a token is a byte at least, and some tokenizers put a space before
    ids = (ctypes.c_int32 * capacity)()

    def call() -> list[int]:
        count = tokenize(vocabulary, raw, len(raw), ids, capacity, False, True)
        if count < 0:
            msg = f"llamacpp: expected at most {capacity} tokens from {len(raw)} bytes, got {-count}; report this"
            raise EngineError(msg)
        return ids[:count]

    return call


def _decode(session: Session, token_ids: list[int]) -> Callable[[], str]:
    ids = (ctypes.c_int32 * len(token_ids))(*token_ids)
    vocabulary, detokenize = session.vocabulary_handle, lib.llama_detokenize
    size = -detokenize(vocabulary, ids, len(ids), ctypes.create_string_buffer(1), 0, False, True)
    buffer = ctypes.create_string_buffer(max(size, 1))

    def call() -> str:
        length = detokenize(vocabulary, ids, len(ids), buffer, len(buffer), False, True)
        return buffer.raw[:length].decode("utf-8", "replace")

    return call


def _sampling(session: Session, parameters: Mapping[str, Any]) -> Callable[[], int]:
    """Run the prompt once; each call is llama_sampler_sample on the logits of its last position."""
    session.prefill(parameters["token_ids"], 1)
    temperature, top_k, top_p, seed = (parameters[name] for name in ("temperature", "top_k", "top_p", "seed"))
    chain = sampler_chain(temperature, top_k, top_p, seed)
    context, sample = session.context_handle, lib.llama_sampler_sample

    def call() -> int:
        return int(sample(chain, context, -1))

    weakref.finalize(call, lib.llama_sampler_free, chain)
    return call
