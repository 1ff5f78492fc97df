"""A model under requests: load it, run a prompt, hand out ids, score, tell sizes and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from enginecmp import ContextOverflow, EngineError, LoadOptions, ModelInfo, read_gguf

from ..config import read_config
from ..device import open_device
from ..weights.model import load_model
from .batching import Batching
from .decode import DecodeBuffers, DecodeSettings, DecodeStep
from .gemm import round_up
from .pages import Cache
from .passes import WIDE_STEP, Answers, Passes, step_sizes
from .prefill import Prefill
from .programs import Programs
from .recorder import Recorder
from .sampling import Draws, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..options import Settings
    from ..weights.model import DeviceModel
    from .prefill import Program

RING_SLOTS = 64
SLOT = 0
"""Of a sequence that runs alone."""

SPARE_BYTES = 256 << 20
"""Of a GPU's memory, left for what the driver and the kernels of prompts need beside weights and cache."""


class Session:
    """A loaded model and its KV cache; one sequence alone (`prefill`, `decode`) or many (`batching`), never both.

    Args:
        model: the file.
        options: device, context, most sequences.
        settings: of the engine.

    Raises:
        UnsupportedModel: the kernels do not compute this model.
        EngineError: the device is not there, or has no room; it says what would fit.
    """

    def __init__(self, model: ModelInfo, options: LoadOptions, settings: Settings) -> None:
        file = read_gguf(model.path)
        config = read_config(file, options.context_tokens)  # a model that is refused costs no device
        self.context_tokens = options.context_tokens
        self.settings = settings
        self.device = open_device(options.device)
        try:
            self.model: DeviceModel = load_model(self.device, file, options.context_tokens)
            self.config = config
            self._build(options)
        except BaseException:
            self.device.close()
            raise

    def _build(self, options: LoadOptions) -> None:
        device, settings, sequences = self.device, self.settings, options.max_sequences
        self.cache = Cache(
            device,
            self.config,
            settings.kv,
            options.context_tokens,
            sequences,
            spare_bytes=SPARE_BYTES if device.timed else 0,
        )
        wide = round_up(sequences, WIDE_STEP)
        chunk = max(min(settings.prefill_chunk, options.context_tokens), wide)
        self.prefiller = Prefill(device, self.model, self.cache, precise=settings.precise, max_tokens=chunk)
        graphs = settings.decoder == "graph"
        self._programs = Programs(device, graphs=graphs)
        decoding = DecodeSettings(
            positions=options.context_tokens,
            kv=settings.kv,
            exact=settings.precise,
            overlap=settings.overlap,
            ring_slots=max(RING_SLOTS, 2 * settings.ahead),
        )
        self._decoding = decoding
        sizes = step_sizes(sequences)
        self.buffers = DecodeBuffers(device, self.config, sizes[-1], decoding)
        self.steps = {size: DecodeStep(device, self.model, size, decoding, self.cache, self.buffers) for size in sizes}
        self.step = self.steps[1]
        if graphs:
            for step in self.steps.values():
                step.graph()
        answers = Answers(device, self.model, self.prefiller, wide)
        self._passes = Passes(device, self.cache, self.prefiller, answers, self.steps, self.buffers, graphs=graphs)
        self.batching = Batching(self._passes, sequences, settings.prefill_chunk, self.check_room)
        self._scorer: DecodeStep | None = None
        self.recorder = Recorder(device)
        self._events = {name: device.event() for name in ("prompt", "first", "steps", "last")}
        self._forget()
        device.synchronize()

    # One request

    def prefill(self, token_ids: Sequence[int], output_tokens: int) -> int:
        """Run a prompt and return the most likely next id; the device is idle then.

        Raises:
            ContextOverflow: prompt plus output minus one (the last id is never run) exceed the context.
            EngineError: the prompt is empty, or an id does not exist.
        """
        self.check_room(token_ids, output_tokens)
        self.begin_alone(len(token_ids) + output_tokens - 1)
        self._events["prompt"].record()
        last = self.run_prompt(token_ids)
        self.step.begin(SLOT, self._position - 1, last)
        self._events["first"].record()
        first = self.buffers.ring.wait(SLOT)
        self.device.synchronize()
        self._prefilled = True
        return first

    def decode(self, n_tokens: int) -> Iterator[int]:
        """Yield the next greedy ids, each as soon as it is in the host's memory.

        Up to `ahead` steps are under way, never more than were asked for. What a caller left in an iterator that it
        dropped comes first out of the next one.

        Raises:
            ContextOverflow: the context is full.
            EngineError: no prompt has been run.
        """
        if not self._prefilled:
            msg = "custom_cuda: expected a prompt before ids are asked for, came none; call cmp_prefill first"
            raise EngineError(msg)
        ahead, wait = self.settings.ahead, self.buffers.ring.wait
        launch = self.step.graph().launch if self.settings.decoder == "graph" else self.step.enqueue
        for left in range(n_tokens, 0, -1):
            while self._under_way < min(ahead, left):
                self._make_room_for_step()
                launch()
                self._under_way += 1
                if self._under_way == left:
                    self._events["last"].record()
                    self._decoded = True
            token = wait(SLOT)
            self._under_way -= 1
            yield token

    def score(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return teacher-forced next-token logits at every position, float32 (T, vocabulary).

        The first half goes through the kernels of prompts, the rest token by token through those of steps, so that
        the gate sees both.

        Raises:
            ContextOverflow, EngineError: as `prefill`.
        """
        self.check_room(token_ids, 1)
        self.begin_alone(len(token_ids))
        ids = np.asarray(token_ids, np.int32)
        half = (len(ids) + 1) // 2
        scores = np.empty((len(ids), self.config.vocabulary), np.float32)  # (T, vocabulary)
        scores[:half] = self.prefiller.score(ids[:half], SLOT)
        if half < len(ids):
            step = self._scoring_step()
            for position in range(half, len(ids)):
                step.seat(SLOT, position, int(ids[position]))
                step.enqueue()
                scores[position] = self.device.download(step.buffers.logits, self.config.vocabulary, np.float32)
            step.end(SLOT)
        self.reset()
        return scores

    def draws_after(self, token_ids: Sequence[int], strategy: Strategy) -> Draws:
        """Return what draws ids from the distribution after some ids.

        Raises:
            ContextOverflow, EngineError: as `prefill`.
        """
        self.check_room(token_ids, 1)
        self.begin_alone(len(token_ids))
        last = self.run_prompt(token_ids)
        vocabulary = self.config.vocabulary
        logits = self.device.allocate(vocabulary * 4, "logits to draw from")
        try:
            self.prefiller.head(last, 1, logits.address).launch()
            return Draws(self.device, logits.address, vocabulary, strategy)
        finally:
            self.device.synchronize()
            logits.free()
            self.reset()

    def run_prompt(self, token_ids: Sequence[int], run: Callable[[Program], None] | None = None) -> int:
        """Enqueue a prompt in chunks, from position 0; return the address of its last token's residual.

        Args:
            token_ids: the prompt; its pages are there.
            run: runs the launches of a chunk.
        """
        ids = np.asarray(token_ids, np.int32)
        chunk = self.prefiller.max_tokens
        for start in range(0, len(ids), chunk):
            piece = ids[start : start + chunk]
            positions = np.arange(start, start + len(piece))
            self.prefiller.enqueue(piece, positions, np.full(len(piece), SLOT), run=run or self._programs)
        self._position = len(ids)
        return self.prefiller.hidden + ((len(ids) - 1) % chunk) * self.config.hidden * 4

    # The rest

    def check_room(self, token_ids: Sequence[int], output_tokens: int) -> None:
        """Refuse what can never be run.

        Raises:
            ContextOverflow: prompt plus output minus one exceed the context.
            EngineError: the prompt is empty, or an id does not exist.
        """
        if len(token_ids) == 0:
            msg = "custom_cuda: expected a prompt of at least one token, came none; pass one"
            raise EngineError(msg)
        if min(token_ids) < 0 or max(token_ids) >= self.config.vocabulary:
            wrong = next(each for each in token_ids if not 0 <= each < self.config.vocabulary)
            msg = f"custom_cuda: expected ids below {self.config.vocabulary}, came {wrong}; use this model's tokenizer"
            raise EngineError(msg)
        needed = len(token_ids) + output_tokens - 1
        if needed > self.context_tokens:
            msg = (
                f"custom_cuda: prompt has {len(token_ids)} tokens and {output_tokens} are to come, "
                f"the context holds {self.context_tokens}; pass --context {needed}"
            )
            raise ContextOverflow(msg)

    def metrics(self) -> dict[str, float]:
        """Return sizes in bytes, and seconds of the last request by CUDA events.

        * `weights_bytes`: all matrices, norms and biases as they lie on the device.
        * `kv_cache_bytes`: keys and values of the tokens now in the cache; the pages were reserved at load.
        * `allocated_bytes`: everything that this session has on the device.
        * `device_prefill_seconds`: from the prompt's first launch to its first id.
        * `device_decode_seconds`: from there to the last step's end. While the host takes its time between the two,
          the device waits, and that counts.
        """
        tokens = self.batching.tokens or self._position
        found: dict[str, float] = {
            "weights_bytes": self.model.weights_bytes,
            "kv_cache_bytes": tokens * self.cache.token_bytes,
            "allocated_bytes": self.device.allocated_bytes,
        }
        if self._prefilled:
            found["device_prefill_seconds"] = self._events["prompt"].seconds_until(self._events["first"])
        if self._decoded:
            found["device_decode_seconds"] = self._events["first"].seconds_until(self._events["last"])
        return found

    def reset(self) -> None:
        """Give all pages back, forget all requests; steps that are under way end first."""
        self.device.synchronize()
        self.batching.clear()
        self._passes.forget()
        if self._prefilled:
            self.step.end(SLOT)
        self.cache.clear()
        self._forget()

    def close(self) -> None:
        """Free everything on the device; twice is fine."""
        self.device.close()

    def begin_alone(self, tokens: int) -> None:
        """Drop what was before and make room for a sequence of so many tokens."""
        self.reset()
        self.cache.pages.promise(SLOT, self.context_tokens)
        # Pages for all of it at once: a block table that grows between steps would make them wait for a copy.
        self.cache.grow(SLOT, tokens)

    def _make_room_for_step(self) -> None:
        """Count the token that the next step runs, and see to its page."""
        if self._position == self.context_tokens:
            msg = (
                f"custom_cuda: expected at most {self.context_tokens} tokens, came one more to run; "
                f"pass --context {self.context_tokens + 1} or more"
            )
            raise ContextOverflow(msg)
        self._position += 1
        self.cache.grow(SLOT, self._position)

    def _scoring_step(self) -> DecodeStep:
        """Return a step that keeps its logits, and works on buffers of its own."""
        if self._scorer is None:
            decoding = replace(self._decoding, logits=True)
            self._scorer = DecodeStep(self.device, self.model, 1, decoding, self.cache)
        return self._scorer

    def _forget(self) -> None:
        self._position = 0
        self._under_way = 0
        self._prefilled = False
        self._decoded = False
