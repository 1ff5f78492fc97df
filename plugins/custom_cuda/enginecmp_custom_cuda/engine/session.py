"""A model under requests: load it, run a prompt, hand out ids, score, tell sizes and times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from enginecmp import ContextOverflow, EngineError, LoadOptions, ModelInfo, read_gguf

from ..config import read_config
from ..device import LostDeviceError, open_device
from ..weights.model import load_model
from .batching.large_batch import LARGE_BATCH_MULTIPLE, LargeBatchSteps
from .batching.passes import Passes
from .batching.scheduler import Batching
from .batching.small_batch import SmallBatchSteps
from .building import decoding_of, largest_step, launcher_of, prefill_of, settle_gemm, spare_bytes, steps_of
from .decode.step import DecodeBuffers, DecodeStep
from .decode.stream import SLOT
from .memory.pages import Cache
from .prefill.gemm import round_up
from .prefill.gemm_choice import copied_bytes
from .prefill.programs import Programs
from .recorder import Recorder
from .sampling.lm_head import LMHead
from .sampling.sampling import Draws, Strategy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..device import Device
    from ..options import Settings
    from ..weights.model import DeviceModel
    from .decode.stream import Launcher
    from .prefill.prefill import Program

__all__ = ["SLOT", "Session", "open_session"]


def open_session(file: ModelInfo, options: LoadOptions, settings: Settings) -> Session:
    """Return a session on a device of its own.

    Args:
        file: the model.
        options: device, context, most sequences.
        settings: of the engine.

    Raises:
        UnsupportedModel: the kernels do not compute this model.
        EngineError: the device is not there, or has no room; it says what would fit.
    """
    gguf = read_gguf(file.path)
    read_config(gguf, options.context_tokens)  # a model that is refused costs no device
    device = open_device(options.device)
    try:
        return Session(device, load_model(device, gguf, options.context_tokens), options, settings)
    except BaseException:
        device.close()
        raise


class Session:
    """A loaded model and its KV cache; one sequence alone (`prefill`, `decode`) or many (`batching`), never both.

    Args:
        device: where; closed with the session.
        model: its weights there; several sessions may share them.
        options: context, most sequences.
        settings: of the engine.

    Attributes:
        settings: with `gemm` as it became.
        gemm: what multiplies prompts, and why.

    Raises:
        EngineError: the device has no room; it says what would fit.
    """

    def __init__(self, device: Device, model: DeviceModel, options: LoadOptions, settings: Settings) -> None:
        self.context_tokens = options.context_tokens
        self.settings = settings
        self.device = device
        self.model = model
        self.config = model.config
        sequences = options.max_sequences
        most_rows = round_up(sequences, LARGE_BATCH_MULTIPLE)
        chunk = min(self.settings.prefill_chunk, options.context_tokens * sequences)
        most = max(chunk, most_rows)
        spare = spare_bytes(device, self.model, self.settings, most, most_rows)
        self.settings, self.gemm = settle_gemm(device, self.model, self.settings, spare, options)
        settings = self.settings
        spare = spare_bytes(device, self.model, settings, most, most_rows)
        self.cache = Cache(device, self.config, settings.kv, options.context_tokens, sequences, spare)
        self.prefiller = prefill_of(device, self.model, self.cache, settings, most)
        graphs = settings.decoder != "launches"
        self._programs = Programs(device, graphs=graphs)
        self._decoding = decoding_of(settings, options.context_tokens)
        self.buffers = DecodeBuffers(device, self.config, largest_step(sequences), self._decoding)
        self.steps = steps_of(device, self.model, self.cache, self._decoding, self.buffers, graphs)
        self.step = self.steps[1]
        self._launcher = launcher_of(device, self.model, self.cache, settings, self._decoding, self.step)
        lm_head = LMHead(device, self.model, self.prefiller, most_rows)
        small = SmallBatchSteps(self.steps, self.buffers, graphs=graphs)
        large = LargeBatchSteps(device, self.model, self.prefiller, lm_head, self._decoding, sequences, graphs=graphs)
        self._passes = Passes(self.cache, self.prefiller, lm_head, small, large)
        self.batching = Batching(self._passes, sequences, chunk, self.check_room, settings.ahead)
        self._scorer: tuple[Launcher, int] | None = None
        self.recorder = Recorder(device)
        self._events = {name: device.event() for name in ("prompt", "first", "last")}
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
        self._launcher.begin(self._position - 1, last)
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
            msg = "custom_cuda: expected a prompt before ids are asked for, got none; call cmp_prefill first"
            raise EngineError(msg)
        wait, ahead, portion = self.buffers.ring.wait, self.settings.ahead, self._launcher.portion
        window = max(ahead, 2 * portion) if portion > 1 else ahead
        for left in range(n_tokens, 0, -1):
            while self._under_way < left and self._under_way + portion <= window:
                self._enqueue(min(portion, left - self._under_way))
                if self._under_way == left:
                    self._events["last"].record()
                    self._decoded = True
            try:
                token = wait(SLOT)
            except LostDeviceError:
                self._launcher.synchronize()  # the persistent kernel knows more
                raise
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
            launcher, logits = self._scoring()
            for position in range(half, len(ids)):
                launcher.bind(position, int(ids[position]))
                launcher.enqueue(1)
                scores[position] = self.device.download(logits, self.config.vocabulary, np.float32)
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
        chunk = min(self.settings.prefill_chunk, self.prefiller.max_tokens)
        for start in range(0, len(ids), chunk):
            piece = ids[start : start + chunk]
            positions = np.arange(start, start + len(piece))
            self.prefiller.enqueue(piece, positions, np.full(len(piece), SLOT), run=run or self._programs)
        self._position = len(ids)
        return self.prefiller.hidden + ((len(ids) - 1) % chunk) * self.config.width * 4

    # The rest

    def check_room(self, token_ids: Sequence[int], output_tokens: int) -> None:
        """Refuse what can never be run.

        Raises:
            ContextOverflow: prompt plus output minus one exceed the context.
            EngineError: the prompt is empty, or an id does not exist.
        """
        if len(token_ids) == 0:
            msg = "custom_cuda: expected a prompt of at least one token, got none; pass one"
            raise EngineError(msg)
        if min(token_ids) < 0 or max(token_ids) >= self.config.vocabulary:
            wrong = next(each for each in token_ids if not 0 <= each < self.config.vocabulary)
            msg = f"custom_cuda: expected ids below {self.config.vocabulary}, got {wrong}; use this model's tokenizer"
            raise EngineError(msg)
        needed = len(token_ids) + output_tokens - 1
        if needed > self.context_tokens:
            msg = (
                f"custom_cuda: prompt has {len(token_ids)} tokens and {output_tokens} are to come, "
                f"the context holds {self.context_tokens}; load it with context_tokens={needed}"
            )
            raise ContextOverflow(msg)

    def metrics(self) -> dict[str, float]:
        """Return sizes in bytes, and seconds of the last request by CUDA events.

        * `weights_bytes`: all matrices, norms and biases as they lie on the device.
        * `kv_cache_bytes`: keys and values of the tokens now in the cache; the pages were reserved at load.
        * `allocated_bytes`: everything that this session has on the device.
        * `library_weights_bytes`: the copy of weights that cuBLASLt multiplies prompts by; 0 with own kernels.
        * `device_prefill_seconds`: from the prompt's first launch to its first id.
        * `device_decode_seconds`: from there to the last step's end. While the host takes its time between the two,
          the device waits, and that counts.
        """
        tokens = self.batching.tokens or self._position
        found: dict[str, float] = {
            "weights_bytes": self.model.weights_bytes,
            "kv_cache_bytes": tokens * self.cache.token_bytes,
            "allocated_bytes": self.device.allocated_bytes,
            "library_weights_bytes": copied_bytes(self.model, self.settings),
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

    def _enqueue(self, steps: int) -> None:
        """Enqueue steps, and see to the pages of the tokens that they run."""
        if self._position + steps > self.context_tokens:
            msg = (
                f"custom_cuda: expected at most {self.context_tokens} tokens, got {self._position + steps} to run; "
                f"load it with context_tokens={self._position + steps}"
            )
            raise ContextOverflow(msg)
        self._position += steps
        self.cache.grow(SLOT, self._position)
        self._launcher.enqueue(steps)
        self._under_way += steps

    def _scoring(self) -> tuple[Launcher, int]:
        """Return steps that keep their logits, on buffers of their own, and where those are."""
        if self._scorer is None:
            decoding = replace(self._decoding, logits=True)
            step = DecodeStep(self.device, self.model, 1, decoding, self.cache)
            launcher = launcher_of(self.device, self.model, self.cache, self.settings, decoding, step)
            self._scorer = launcher, step.buffers.logits
        return self._scorer

    def _forget(self) -> None:
        self._position = 0
        self._under_way = 0
        self._prefilled = False
        self._decoded = False
