"""How ids are chosen: a chain of llama.cpp's own samplers, as the hooks order them, and its grammar beside it."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import Decoding, EngineError

from . import native
from .native import lib

_ALL = 0xFFFFFFFF


def sampler_chain(temperature: float, top_k: int, top_p: float, seed: int) -> Any:
    """Return a llama_sampler: temperature, then top-k, then top-p, then a draw; the caller frees it.

    Temperature comes first, as the hooks ask; llama.cpp's own programs put it last.
    """
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if temperature == 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
        return chain
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(temperature))
    if top_k:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(top_k))
    if top_p < 1:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(top_p, 1))
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed & _ALL))
    return chain


def grammar_sampler(json_schema: str, vocabulary: Any) -> Any:
    """Return llama.cpp's grammar sampler of a JSON Schema; the caller frees it.

    Args:
        json_schema: as JSON text.
        vocabulary: llama_vocab of the model.

    Raises:
        EngineError: no grammar can be made of it.
    """
    # The package's own conversion: llama.cpp's is in its common library, which wheels do not have.
    from llama_cpp.llama_grammar import json_schema_to_gbnf

    try:
        grammar = json_schema_to_gbnf(json_schema)
    except Exception as error:
        msg = (
            "llamacpp: expected a JSON Schema that llama-cpp-python makes a grammar of, got "
            f"{type(error).__name__}: {str(error)[:200]}; use simpler keywords"
        )
        raise EngineError(msg) from error
    native.log.errors.clear()
    sampler = lib.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
    if not sampler:
        why = " ".join(native.log.errors)[:200]
        msg = f"llamacpp: expected a grammar that llama.cpp reads from the JSON Schema, got an error: {why}"
        raise EngineError(msg)
    return sampler


class Choice:
    """Chooses ids by rows of logits, through a chain of its own.

    Args:
        decoding: how.
        vocabulary: llama_vocab of the model.
        size: number of its ids.

    Raises:
        EngineError: no grammar can be made of the JSON Schema.
    """

    def __init__(self, decoding: Decoding, vocabulary: Any, size: int) -> None:
        self._grammar = grammar_sampler(decoding.json_schema, vocabulary) if decoding.json_schema else None
        if self._grammar is not None:
            weakref.finalize(self, lib.llama_sampler_free, self._grammar)
        self._chain = sampler_chain(decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed)
        weakref.finalize(self, lib.llama_sampler_free, self._chain)
        # llama_token_data: an id, its logit, its probability.
        self._candidates = np.zeros(size, np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]))
        self._ids = np.arange(size, dtype=np.int32)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """Return the id that the chain chooses by logits (vocabulary,); what is drawn moves it on.

        With a grammar as llama.cpp's own programs do it: chosen without, and only where the grammar refuses the id
        chosen again among all that it takes. That saves a look at the whole vocabulary at most tokens.

        Raises:
            EngineError: no id of the vocabulary is a way on in the grammar.
        """
        token = self._chosen(self._filled(logits))
        if self._grammar is not None:
            if not self._takes(token):
                every = self._filled(logits)
                lib.llama_sampler_apply(self._grammar, ctypes.byref(every))
                token = self._chosen(every)
                # llama.cpp ends the process where it is told that an id was taken which the grammar refuses.
                if not self._takes(token):
                    msg = (
                        "llamacpp: expected an id that the grammar of the JSON Schema takes, the vocabulary has none; "
                        "use a schema whose text this model's tokens can write"
                    )
                    raise EngineError(msg)
            lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _filled(self, logits: NDArray[np.float32]) -> Any:
        """Return all ids as llama.cpp's candidates; samplers sort them in place."""
        found = self._candidates
        found["id"], found["logit"], found["p"] = self._ids, logits, 0
        return _as_array(found)

    def _chosen(self, candidates: Any) -> int:
        lib.llama_sampler_apply(self._chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def _takes(self, token: int) -> bool:
        """Say whether the grammar takes an id next."""
        one = lib.llama_token_data(token, 1.0, 0.0)
        array = lib.llama_token_data_array(data=ctypes.pointer(one), size=1, selected=-1, sorted=False)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return not math.isinf(array.data[0].logit)


def _as_array(found: NDArray[Any]) -> Any:
    pointer = found.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    return lib.llama_token_data_array(data=pointer, size=len(found), selected=-1, sorted=False)
