"""One model and one context: prefill, decode and score, one request after the other."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginecmp import ContextOverflow, Decoding, EngineError, LoadOptions, ModelInfo, UnsupportedModel

from . import native
from .native import Batch, lib
from .options import KV_TYPES, Settings
from .sampling import Choice

_CONTEXT_MULTIPLE = 256
# enum ggml_type; llama-cpp-python leaves out BF16.
_KV_TYPES = {name: 30 if name == "bf16" else getattr(lib, f"GGML_TYPE_{name.upper()}") for name in KV_TYPES}
_FLASH_ATTENTION = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


class Context:
    """A loaded model and the context that its requests run in.

    Args:
        model: the file to load.
        options: what the host asks for.
        settings: what was made of `options.extra`.

    Raises:
        UnsupportedModel: llama.cpp does not load this file, or it is not a plain decoder.
        EngineError: no context of this size and kind can be made.
    """

    def __init__(self, model: ModelInfo, options: LoadOptions, settings: Settings) -> None:
        native.prepare(settings.verbose)
        self._model: Any = None
        self._context: Any = None
        self._options, self._settings = options, settings
        try:
            begun = time.perf_counter()
            self._model = load_model(model, options, settings)
            mapped = time.perf_counter()
            # Learned positions end where training ended: past that llama.cpp aborts the process.
            self.context_tokens = min(options.context_tokens, lib.llama_model_n_ctx_train(self._model))
            self._limit = ""
            if 0 < (window := _ignored_window(self._model)) < self.context_tokens:
                self.context_tokens = window
                self._limit = "llama.cpp leaves out Phi-3's sliding window beyond that, so use a shorter prompt"
            self._context = make_context(self._model, self.context_tokens, options, settings)
            self.memory = lib.llama_get_memory(self._context)
            if self.memory is None or lib.llama_model_has_encoder(self._model):
                msg = f"llamacpp: expected a decoder-only model, {model.name} is '{model.architecture}'"
                raise UnsupportedModel(msg)
        except BaseException:
            self.close()
            raise
        self.vocabulary_handle = lib.llama_model_get_vocab(self._model)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self.vocabulary_handle)
        # llama.cpp shrinks both to what the context can hold, and aborts the process on a larger batch.
        self.batch = Batch(lib.llama_n_batch(self._context))
        self._piece = lib.llama_n_ubatch(self._context)
        self._position = 0
        self._token: int | None = None
        self._choose: Choice | None = None  # greedy
        # llama.cpp reads header and weights in one call.
        self._load_phases = {
            "load_map_seconds": mapped - begun,
            "load_init_seconds": time.perf_counter() - mapped,
        }

    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int:
        """Run a prompt in sequence 0 and return its greedy continuation.

        Raises:
            ContextOverflow: prompt and output do not fit.
            EngineError: no ids, ids outside the vocabulary, or the cache is not empty.
        """
        if self._position:
            msg = f"llamacpp: expected an empty cache, it holds {self._position} tokens; call cmp_reset first"
            raise EngineError(msg)
        self.check_room(token_ids, output_tokens)
        ids = native.as_ids(token_ids)
        for start in range(0, len(ids), self.batch.capacity):
            end = self.batch.put(0, ids[start : start + self.batch.capacity], start, 0)
            self.batch.outputs[end - 1] = start + end == len(ids)
            self.run(end)
        self._position = len(ids)
        self._token = self._chosen(self.logits(1)[0])
        return self._token

    def decode(self, n_tokens: int) -> Iterator[int]:
        """Yield the next greedy ids.

        Raises:
            EngineError: nothing was prefilled.
            ContextOverflow: they do not fit behind what is in the cache.
        """
        token = self._token
        if token is None:
            msg = "llamacpp: expected a prompt before decode, the cache is empty; call cmp_prefill first"
            raise EngineError(msg)
        self.check_more(self._position, n_tokens)
        batch, tokens, positions = self.batch.native, self.batch.tokens, self.batch.positions
        context, decode, synchronize = self._context, lib.llama_decode, lib.llama_synchronize
        row: NDArray[np.float32] | None = None
        choose = self._choose
        self.batch.put(0, (token,), self._position, 0)
        self.batch.outputs[0] = 1
        batch.n_tokens = 1
        for _ in range(n_tokens):
            tokens[0] = token
            positions[0] = self._position
            if code := decode(context, batch):
                raise native.decode_failure(code)
            self._position += 1
            # Wait: the token can be used when it is yielded.
            synchronize(context)
            if row is None:
                # One view for the whole loop: llama.cpp moves its buffer only to hold more rows than ever before.
                row = self.logits(1)[0]  # (vocabulary,)
            self._token = token = int(row.argmax()) if choose is None else choose(row)
            yield token

    def choice_for(self, decoding: Decoding) -> Choice | None:
        """Return what chooses the ids of a request; None where they are the most likely ones.

        Raises:
            EngineError: no grammar can be made of its JSON Schema.
        """
        if not decoding.temperature and not decoding.json_schema:
            return None
        return Choice(decoding, self.vocabulary_handle, self.vocabulary)

    def decode_by(self, decoding: Decoding) -> None:
        """Choose ids in this way until the next `reset`.

        Raises:
            EngineError: see `choice_for`.
        """
        self._choose = self.choice_for(decoding)

    def _chosen(self, row: NDArray[np.float32]) -> int:
        return int(row.argmax()) if self._choose is None else self._choose(row)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits at every position, shape (T, vocabulary).

        In pieces of n_ubatch tokens, which is how llama.cpp computes them anyway: the buffer for logits stays
        small.

        Raises:
            ContextOverflow: more ids than the context holds.
        """
        self.check_room(token_ids, 1)
        ids = native.as_ids(token_ids)
        scores = np.empty((len(ids), self.vocabulary), np.float32)  # (T, vocabulary)
        for start in range(0, len(ids), self._piece):
            end = self.batch.put(0, ids[start : start + self._piece], start, 0)
            self.batch.outputs[:end] = 1
            self.run(end)
            scores[start : start + end] = self.logits(end)
        self.reset()
        return scores

    def run(self, n_tokens: int) -> None:
        """Decode the first tokens of the batch; returns as soon as the work is queued.

        Raises:
            ContextOverflow, EngineError: see `native.decode_failure`.
        """
        self.batch.native.n_tokens = n_tokens
        native.log.errors.clear()
        if code := lib.llama_decode(self._context, self.batch.native):
            raise native.decode_failure(code)

    def logits(self, rows: int) -> NDArray[np.float32]:
        """Wait for the device and return the last batch's logits, shape (rows, vocabulary).

        The rows are those that asked for output, in the batch's order. This is llama.cpp's own memory: the
        next batch overwrites it.
        """
        lib.llama_synchronize(self._context)
        pointer = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, (rows, self.vocabulary))

    def check_room(self, token_ids: Sequence[int], output_tokens: int) -> None:
        """Refuse what does not fit.

        Raises:
            ContextOverflow: prompt plus output minus one (the last token is never run) exceed the context.
            EngineError: the prompt is empty.
        """
        if len(token_ids) == 0:
            msg = "llamacpp: expected a prompt of at least one token, got none"
            raise EngineError(msg)
        needed = len(token_ids) + output_tokens - 1
        if needed > self.context_tokens:
            msg = (
                f"llamacpp: prompt has {len(token_ids)} tokens and {output_tokens} are to come, "
                f"the context holds {self.context_tokens}; {self._limit or f'load it with context_tokens={needed}'}"
            )
            raise ContextOverflow(msg)

    def check_more(self, already: int, n_tokens: int) -> None:
        """Refuse more tokens than fit behind those that are there.

        Raises:
            ContextOverflow: they do not.
        """
        if already + n_tokens > self.context_tokens:
            msg = (
                f"llamacpp: {n_tokens} more tokens after {already} do not fit, the context holds "
                f"{self.context_tokens}; {self._limit or f'load it with context_tokens={already + n_tokens}'}"
            )
            raise ContextOverflow(msg)

    def metrics(self) -> dict[str, float]:
        """Return sizes in bytes and llama.cpp's own view of the last request.

        * `weights_bytes`: all tensors as stored in the file (llama_model_size).
        * `kv_cache_bytes`: keys and values that the sequences now in the cache hold, with llama.cpp's few bytes
          of bookkeeping per token (llama_state_seq_get_size). The cache as a whole was reserved at load.
        * `engine_prefill_seconds`, `engine_decode_seconds`: llama_perf_context since the last reset, a
          cross-check of the host's clock. llama.cpp counts every call with one token as decode, so a prompt of
          one token is in `engine_decode_seconds`; a batch of several requests is in `engine_prefill_seconds`.
        * `import_seconds`: the part of loading that is importing the Python package.
        * `load_map_seconds`, `load_init_seconds`: reading the model, making the context; once, after the load.
        """
        timers = lib.llama_perf_context(self._context)
        phases, self._load_phases = self._load_phases, {}
        sequences = range(lib.llama_n_seq_max(self._context))
        return {
            "weights_bytes": lib.llama_model_size(self._model),
            "kv_cache_bytes": sum(lib.llama_state_seq_get_size(self._context, sequence) for sequence in sequences),
            "engine_prefill_seconds": timers.t_p_eval_ms / 1e3,
            "engine_decode_seconds": timers.t_eval_ms / 1e3,
            "import_seconds": native.IMPORT_SECONDS,
            **phases,
        }

    def reset(self) -> None:
        """Empty the cache and zero the timers."""
        lib.llama_memory_clear(self.memory, True)
        lib.llama_perf_context_reset(self._context)
        self._position = 0
        self._token = None
        self._choose = None

    @property
    def context_handle(self) -> Any:
        """The llama_context."""
        return self._context

    @property
    def device(self) -> str:
        """Where the model computes: "cpu" or "cuda"."""
        return self._options.device

    @property
    def threads(self) -> int:
        """Compute threads."""
        return self._options.threads

    def observed(self, observer: Any) -> Any:
        """Return a second llama_context of the same model, whose graph `observer` watches; the caller frees it."""
        return make_context(self._model, self.context_tokens, self._options, self._settings, observer)

    def close(self) -> None:
        """Free the context, then the model it points into. Safe to call twice."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        free(context, model)


def free(context: Any, model: Any) -> None:
    """Free a context, then the model it points into; None is nothing to free."""
    if context is not None:
        lib.llama_free(context)
    if model is not None:
        lib.llama_model_free(model)


def _ignored_window(model: Any) -> int:
    """Return how many tokens a query of Phi-3 sees, which llama.cpp reads and does not follow; 0 for all of them."""
    return int(metadata_value(model, b"phi3.attention.sliding_window") or 0)


def metadata_value(model: Any, key: bytes) -> bytes | None:
    """Return the text of a key of a model's file, 31 bytes at most; None where the file has no such key."""
    text = ctypes.create_string_buffer(32)
    return text.value if lib.llama_model_meta_val_str(model, key, text, len(text)) > 0 else None


def load_model(model: ModelInfo, options: LoadOptions, settings: Settings) -> Any:
    """Return a llama_model.

    Raises:
        UnsupportedModel: see `Context`.
    """
    params = lib.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    params.use_extra_bufts = settings.repack
    # One GPU: with more, llama.cpp would spread the layers over all of them, and no other engine here does.
    params.split_mode = lib.LLAMA_SPLIT_MODE_NONE
    params.main_gpu = 0
    no_devices = (ctypes.c_void_p * 1)(None)
    if options.device == "cpu":
        # A CUDA build would still offload large multiplications; an empty list of devices prevents that.
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    loaded = lib.llama_model_load_from_file(os.fsencode(model.path), params)
    if loaded is None:
        reason = native.complaint() or "it gave no reason"
        msg = f"llamacpp: expected a model that llama.cpp can load, {model.name} is refused: {reason}"
        raise UnsupportedModel(msg)
    return loaded


def make_context(
    model: Any, context_tokens: int, options: LoadOptions, settings: Settings, observer: Any = None
) -> Any:
    """Return a llama_context for `options.max_sequences` sequences of `context_tokens` each.

    With an observer, llama.cpp calls it around the nodes of every graph (`ggml_backend_sched_eval_callback`).

    Raises:
        EngineError: llama.cpp cannot make it.
    """
    native.log.errors.clear()
    params = lib.llama_context_default_params()
    params.n_seq_max = options.max_sequences
    params.kv_unified = settings.kv_unified and options.max_sequences > 1
    # llama.cpp rounds a cache up to this multiple, with a warning where it has to: each sequence's, or the shared one.
    caches = 1 if params.kv_unified else options.max_sequences
    tokens = context_tokens * options.max_sequences // caches
    params.n_ctx = -(-tokens // _CONTEXT_MULTIPLE) * _CONTEXT_MULTIPLE * caches
    params.n_batch = settings.n_batch
    params.n_ubatch = settings.n_ubatch
    params.n_threads = params.n_threads_batch = options.threads
    params.type_k = params.type_v = _KV_TYPES[settings.kv_type]
    params.flash_attn_type = _FLASH_ATTENTION[settings.flash_attn]
    params.offload_kqv = params.op_offload = options.device != "cpu"
    # As in llama.cpp's own programs; the library's default keeps a full cache for sliding-window layers.
    params.swa_full = False
    if observer is not None:
        params.cb_eval = observer
    params.no_perf = False
    context = lib.llama_init_from_model(model, params)
    if context is None:
        reason = native.complaint() or "it gave no reason"
        wanted = f"{options.max_sequences} x {context_tokens} tokens with {settings.kv_type} KV cache"
        msg = f"llamacpp: expected a context of {wanted}, llama.cpp cannot make it: {reason}; ask for less"
        raise EngineError(msg)
    return context
