"""What the tests hold this engine against: llama.cpp's own logits."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from enginecmp import LoadOptions, ModelInfo
from enginecmp.testing.tiny_models import tiny_model
from enginecmp_pytorch_baseline import cmp_load, cmp_unload

Logits = NDArray[np.float32]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelInfo]:
    """Return the tiny F32 model of an architecture, written once."""
    return functools.cache(functools.partial(tiny_model, tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def load() -> Iterator[Callable[..., Any]]:
    """Return `cmp_load` with one thread, everything unloaded in the end."""
    sessions: list[Any] = []

    def load(model: ModelInfo, **options: Any) -> Any:
        asked: dict[str, Any] = {"context_tokens": 256, "numerics": "exact"} | options
        sessions.append(cmp_load(model, LoadOptions(**asked)))
        return sessions[-1]

    yield load
    for session in sessions:
        cmp_unload(session)


@pytest.fixture(scope="session")
def llama_cpp_logits() -> Callable[..., Logits]:
    """Return the oracle: llama.cpp's teacher-forced logits, (T, vocabulary).

    float32 KV cache, no flash attention, CPU, one thread, through the low-level API: nothing of this engine, nor
    of the host, is in it.
    """
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle of these tests is llama-cpp-python")
    silence = llama_cpp.llama_log_callback(lambda level, text, user: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()

    def logits(model: ModelInfo, token_ids: Sequence[int], context_tokens: int = 256) -> Logits:
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        handle = llama_cpp.llama_model_load_from_file(model.path.encode(), parameters)
        assert handle, f"llama.cpp refuses {model.path}"
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context_tokens
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context = llama_cpp.llama_init_from_model(handle, parameters)
        assert context, "llama.cpp made no context"
        batch = llama_cpp.llama_batch_init(len(token_ids), 0, 1)
        batch.n_tokens = len(token_ids)
        for position, token in enumerate(token_ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert llama_cpp.llama_decode(context, batch) == 0
        llama_cpp.llama_synchronize(context)
        shape = (len(token_ids), llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(handle)))
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, position), shape[1:]).copy()
            for position in range(shape[0])
        ]
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
        llama_cpp.llama_model_free(handle)
        return np.stack(rows)

    # The C library calls `silence` for as long as it lives: keep it as long.
    logits.silence = silence  # type: ignore[attr-defined]
    return logits


@pytest.fixture(scope="session")
def kl() -> Callable[[Logits, Logits], NDArray[np.float64]]:
    """Return KL(p || q) in nats at every position, from two sets of logits, in float64."""

    def log_softmax(logits: Logits) -> NDArray[np.float64]:
        shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
        scores: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return scores

    def divergence(p: Logits, q: Logits) -> NDArray[np.float64]:
        log_p, log_q = log_softmax(p), log_softmax(q)
        found: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
        return found

    return divergence
