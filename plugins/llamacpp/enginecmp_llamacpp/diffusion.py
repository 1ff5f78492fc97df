"""A diffusion model in llama.cpp: no KV cache, all sequences of a batch in one forward pass, every position an output.

llama.cpp aborts the process on more tokens than n_ubatch without a causal mask, so here both batch sizes are what the
context holds, whatever the options say.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginecmp import ContextOverflow, Decoding, EngineError, LoadOptions, ModelInfo, UnsupportedModel
from enginecmp.denoising import Committed, denoise, likeliest
from enginecmp.models.diffusion import write_autoregressive
from enginecmp.plugin_tools.python_plugin import check_denoising

from . import native
from .batching import Batching
from .context import free, load_model, make_context, metadata_value
from .native import Batch, lib
from .options import Settings
from .session import Session

ARCHITECTURES = ("llada", "dream")


class DiffusionSession:
    """What `cmp_load` returns of a diffusion model.

    Asked for the next token, it generates with the same weights under the name of the autoregressive architecture, in a
    second session that is made then: the price of one token after the other in the same shape.

    Args:
        model: the file to load.
        options: what the host asks for.
        settings: what was made of `options.extra`.

    Raises:
        UnsupportedModel: llama.cpp does not load this file, or not as a diffusion model.
        EngineError: no context of this size and kind can be made, or an option that guesses ahead.
    """

    def __init__(self, model: ModelInfo, options: LoadOptions, settings: Settings) -> None:
        if settings.draft or settings.lookup:
            msg = "llamacpp: a diffusion model has no next token to guess; leave out the options draft and lookup"
            raise EngineError(msg)
        native.prepare(settings.verbose)
        self._model: Any = None
        self._context: Any = None
        self._causal: Session | None = None
        self._file, self._options, self._settings = model, options, settings
        try:
            begun = time.perf_counter()
            self._model = load_model(model, options, settings)
            mapped = time.perf_counter()
            if not lib.llama_model_is_diffusion(self._model):
                msg = f"llamacpp: expected a diffusion model, llama.cpp does not take {model.name} for one"
                raise UnsupportedModel(msg)
            self.context_tokens = min(options.context_tokens, lib.llama_model_n_ctx_train(self._model))
            tokens = self.context_tokens * options.max_sequences
            whole = msgspec.structs.replace(settings, n_batch=tokens, n_ubatch=tokens, kv_unified=False)
            self._context = make_context(self._model, self.context_tokens, options, whole)
        except BaseException:
            self.close()
            raise
        vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocabulary: int = lib.llama_vocab_n_tokens(vocabulary)
        self._mask: int = lib.llama_vocab_mask(vocabulary)
        self._shifted = _shifted(self._model)
        self._batch = Batch(tokens)
        self._load_phases = {
            "load_map_seconds": mapped - begun,
            "load_init_seconds": time.perf_counter() - mapped,
        }

    def denoise(
        self, token_ids: Sequence[Sequence[int]], output_tokens: int, steps: int, block_tokens: int
    ) -> Iterator[Committed]:
        """Yield what each denoising step commits, the device done.

        Raises:
            ContextOverflow: a prompt and its output do not fit, or more sequences than were asked for at load.
            EngineError: no mask token, or what is asked for cannot be denoised.
        """
        check_denoising(
            "llamacpp", token_ids, output_tokens, steps, block_tokens,
            vocabulary=self.vocabulary, limit=self.context_tokens,
        )  # fmt: skip
        if len(token_ids) > self._options.max_sequences:
            msg = (
                f"llamacpp: expected at most {self._options.max_sequences} sequences to denoise together, got "
                f"{len(token_ids)}; load it with max_sequences={len(token_ids)}"
            )
            raise ContextOverflow(msg)
        if not 0 <= self._mask < self.vocabulary:
            msg = "llamacpp: expected a mask token in the vocabulary (tokenizer.ggml.mask_token_id), the file has none"
            raise EngineError(msg)
        return denoise(self._predict, token_ids, output_tokens, steps, block_tokens, self._mask)

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits of what is at every position, masks among the ids, shape (T, vocabulary).

        Raises:
            ContextOverflow: more ids than the context holds.
            EngineError: no ids.
        """
        if not 0 < len(token_ids) <= self.context_tokens:
            kind = ContextOverflow if len(token_ids) else EngineError
            msg = (
                f"llamacpp: expected 1 to {self.context_tokens} ids, got {len(token_ids)}; "
                f"load it with context_tokens={len(token_ids)}"
            )
            raise kind(msg)
        return self._logits(native.as_ids(token_ids)[None])[self._told_at(np.arange(len(token_ids)))].copy()

    def _predict(
        self, ids: NDArray[np.int64], sequences: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        rows = sequences * ids.shape[1] + self._told_at(positions)
        return likeliest(self._logits(ids)[rows], self._mask)

    def _told_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the position whose logits say what is at each position."""
        return np.maximum(positions - 1, 0) if self._shifted else positions

    def _logits(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Run (B, T) ids in one pass and return llama.cpp's own memory, (B * T, vocabulary)."""
        tokens = ids.shape[1]
        for sequence, row in enumerate(ids):
            self._batch.put(sequence * tokens, row, 0, sequence)
        self._batch.outputs[: ids.size] = 1
        self._batch.native.n_tokens = ids.size
        native.log.errors.clear()
        if code := lib.llama_decode(self._context, self._batch.native):
            raise native.decode_failure(code)
        lib.llama_synchronize(self._context)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), (ids.size, self.vocabulary))

    @property
    def causal(self) -> Session:
        """The same weights as an autoregressive model.

        Raises:
            ModelError: the file cannot be written for the moment that llama.cpp needs it.
        """
        if self._causal is None:
            with tempfile.TemporaryDirectory(prefix="enginecmp-llamacpp-") as folder:
                # Gone before the first request, while llama.cpp's mapping keeps the content.
                twin = write_autoregressive(self._file, Path(folder) / "autoregressive.gguf")
                self._causal = Session(twin, self._options, self._settings)
        return self._causal

    @property
    def batching(self) -> Batching:
        """Continuous batching of the autoregressive model."""
        return self.causal.batching

    def decode_by(self, decoding: Decoding) -> None:
        """Choose ids of the autoregressive model in this way; errors as `Session.decode_by`."""
        self.causal.decode_by(decoding)

    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int:
        """Run a prompt through the autoregressive model; errors as `Session.prefill`."""
        return self.causal.prefill(token_ids, output_tokens)

    def decode(self, n_tokens: int) -> Iterator[int]:
        """Yield the autoregressive model's next ids; errors as `Session.decode`."""
        return self.causal.decode(n_tokens)

    def profile(self, token_ids: Sequence[int], n_tokens: int) -> dict[str, float] | None:
        """Return seconds per component of the autoregressive model; errors as `Session.profile`."""
        return self.causal.profile(token_ids, n_tokens)

    def metrics(self) -> dict[str, float]:
        """Return what `Context.metrics` says, the cache and llama.cpp's timers of the autoregressive model.

        How long that one took to load is nobody's load time.
        """
        phases, self._load_phases = self._load_phases, {}
        told = self._causal.metrics() if self._causal is not None else {"import_seconds": native.IMPORT_SECONDS}
        own = {"weights_bytes": float(lib.llama_model_size(self._model)), **phases}
        return {name: value for name, value in told.items() if not name.startswith("load_")} | own

    def reset(self) -> None:
        """Empty the autoregressive model's cache; there is no other."""
        if self._causal is not None:
            self._causal.reset()

    def close(self) -> None:
        """Free everything. Safe to call twice."""
        causal, self._causal = self._causal, None
        if causal is not None:
            causal.close()
        context, self._context = self._context, None
        model, self._model = self._model, None
        free(context, model)


def _shifted(model: Any) -> bool:
    """Return whether what is at a position is told one position before, as it is where a file does not say."""
    return metadata_value(model, b"diffusion.shift_logits") in (None, b"true")
