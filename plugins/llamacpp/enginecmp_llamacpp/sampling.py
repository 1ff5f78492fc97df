"""How ids are drawn: a chain of llama.cpp's own samplers, as the hooks order them."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


class Choice:
    """Chooses ids by rows of logits, through a chain of its own.

    Args:
        temperature: the logits are divided by it; 0 takes the most likely id.
        top_k: of so many of the most likely ids; 0 is off.
        top_p: of the fewest most likely ids that reach this probability; 1 is off.
        seed: of the draws.
        vocabulary: number of ids.
    """

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int, vocabulary: int) -> None:
        self._chain = sampler_chain(temperature, top_k, top_p, seed)
        weakref.finalize(self, lib.llama_sampler_free, self._chain)
        # llama_token_data: an id, its logit, its probability.
        self._candidates = np.zeros(vocabulary, np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")]))
        self._ids = np.arange(vocabulary, dtype=np.int32)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """Return the id that the chain chooses by logits (vocabulary,); what is drawn moves it on."""
        found = self._candidates
        # Samplers sort them in place.
        found["id"], found["logit"], found["p"] = self._ids, logits, 0
        pointer = found.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=pointer, size=len(found), selected=-1, sorted=False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self._chain, token)
        return token
