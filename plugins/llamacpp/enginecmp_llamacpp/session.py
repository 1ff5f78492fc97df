"""What `cmp_load` returns: a context for single requests, with batching and a profiler over it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from enginecmp import Decoding, EngineError, LoadOptions, ModelInfo, Request

from . import ggml
from .batching import Batching
from .context import Context
from .options import Settings
from .profile import Profiler
from .speculate import DraftModel, Guesser, Lookup


class Session(Context):
    """A context, continuous batching over its sequences, and a profiler that is made when it is asked for.

    Args:
        model: the file to load.
        options: what the host asks for.
        settings: what was made of `options.extra`.

    Raises:
        UnsupportedModel, EngineError: see `Context`.
    """

    def __init__(self, model: ModelInfo, options: LoadOptions, settings: Settings) -> None:
        self._profiler: Profiler | None = None
        self._guesser: Guesser | None = None
        super().__init__(model, options, settings)
        if settings.draft:
            try:
                self._guesser = DraftModel(model, self.vocabulary, options, settings)
            except BaseException:
                self.close()
                raise
        elif settings.lookup:
            self._guesser = Lookup(settings.lookup)
        self.batching = Batching(self, options.max_sequences, self._guesser, settings.draft_tokens)

    def decode_by(self, decoding: Decoding) -> None:
        """Choose ids in this way until the next `reset`.

        Raises:
            EngineError: somebody guesses ahead, which is checked against greedy ids.
        """
        if self._guesser is not None:
            msg = "llamacpp: expected greedy decoding beside draft or lookup, got another; leave one of them out"
            raise EngineError(msg)
        super().decode_by(decoding)

    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int:
        """Run a prompt and return its greedy continuation; where somebody guesses, it is a batch of one request.

        Raises:
            ContextOverflow, EngineError: see `Context.prefill`.
        """
        if self._guesser is None:
            return super().prefill(token_ids, output_tokens)
        request = Request(id="", token_ids=token_ids, output_tokens=output_tokens)
        if self.batching.cached_tokens or not self.batching.submit(request, stays=True):
            held = self.batching.cached_tokens
            msg = f"llamacpp: expected an empty cache, it holds {held} tokens; call cmp_reset first"
            raise EngineError(msg)
        return self.batching.step()[0][1]

    def decode(self, n_tokens: int) -> Iterator[int]:
        """Yield the next greedy ids.

        Raises:
            ContextOverflow, EngineError: see `Context.decode`.
        """
        return super().decode(n_tokens) if self._guesser is None else self._decode_guessing(n_tokens)

    def _decode_guessing(self, n_tokens: int) -> Iterator[int]:
        if not self.batching.cached_tokens:
            msg = "llamacpp: expected a prompt before decode, the cache is empty; call cmp_prefill first"
            raise EngineError(msg)
        self.check_more(self.batching.cached_tokens, n_tokens - self.batching.held_tokens)
        for _ in range(n_tokens):
            yield self.batching.step()[0][1]

    def metrics(self) -> dict[str, float]:
        """Return what `Context.metrics` says, with what guessing brought; `weights_bytes` is of both models."""
        found = super().metrics() | (self.batching.speculation.metrics() if self._guesser else {})
        if isinstance(self._guesser, DraftModel):
            found["weights_bytes"] += self._guesser.weights_bytes
        return found

    def reset(self) -> None:
        """Forget all requests, empty the cache and zero the timers."""
        self.batching.clear()
        super().reset()

    def profile(self, token_ids: Sequence[int], n_tokens: int) -> dict[str, float] | None:
        """Return seconds per component, in a second context that is kept; None where ggml cannot be reached.

        Raises:
            ContextOverflow: prompt and tokens do not fit.
        """
        self.check_room(token_ids, n_tokens + 1)
        if ggml.functions() is None:
            return None
        if self._profiler is None:
            self._profiler = Profiler(self.observed, self.batch.capacity)
        return self._profiler.profile(self.vocabulary, token_ids, n_tokens)

    def close(self) -> None:
        """Free the contexts, then the model they point into. Safe to call twice."""
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.close()
        guesser, self._guesser = self._guesser, None
        if guesser is not None:
            guesser.close()
        super().close()
