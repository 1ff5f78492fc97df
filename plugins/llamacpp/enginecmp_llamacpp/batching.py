"""Continuous batching: a scheduler over llama.cpp's sequences, one llama_decode a step."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from enginecmp import EngineError, Request

from .native import as_ids, lib
from .sampling import Choice
from .speculate import Guesser, Speculation, Wish, cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .context import Context


class _Running(msgspec.Struct):
    """One request in flight.

    Attributes:
        id: of the request.
        sequence: its place in the KV cache.
        prompt: int32, (T,).
        left: tokens still to generate.
        position: tokens in the cache; below T the prompt is not through yet.
        token: the last one generated.
        guesses: of what comes after it, for the next batch to check.
        answered: a token of it has been generated, so what its next batch runs is not of the prompt.
        held: tokens that are there and have not been handed out.
        text: prompt and generated tokens; empty where nobody guesses.
        end_ids: with the first of these it is over.
        choose: draws its ids; None where it is greedy.
        stays: with all its tokens it waits for more to be asked of it.
    """

    id: str
    sequence: int
    prompt: NDArray[np.int32]
    left: int
    position: int = 0
    token: int = 0
    guesses: list[int] = []
    answered: bool = False
    held: deque[int] = msgspec.field(default_factory=deque)
    text: list[int] = []
    end_ids: tuple[int, ...] = ()
    choose: Choice | None = None
    stays: bool = False

    @property
    def generates(self) -> bool:
        """Whether its prompt is through."""
        return self.position >= len(self.prompt)


class Batching:
    """Admits up to `max_sequences` requests and advances them together.

    Args:
        context: whose batch and cache are used.
        max_sequences: most requests at once.
        guesser: what is checked beside a request's next token, or None.
        draft_tokens: most guesses of a request in one batch.

    Attributes:
        speculation: what guessing brought.
    """

    def __init__(self, context: Context, max_sequences: int, guesser: Guesser | None, draft_tokens: int) -> None:
        self._context = context
        self._max_sequences = max_sequences
        self._guesser = guesser
        # Every running request must find its place in a batch.
        self._draft_tokens = min(draft_tokens, context.batch.capacity // max_sequences - 1)
        self.speculation = Speculation()
        self._running: list[_Running] = []
        self._free = list(range(max_sequences))

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache, of all requests in flight."""
        return sum(running.position for running in self._running)

    @property
    def held_tokens(self) -> int:
        """Tokens that are there and have not been handed out."""
        return sum(len(running.held) for running in self._running)

    def submit(self, request: Request, *, stays: bool = False) -> bool:
        """Admit a request if a sequence is free; with all its tokens it leaves, or `stays` to be asked for more.

        Raises:
            ContextOverflow: it can never fit.
            EngineError: its prompt is empty.
        """
        self._context.check_room(request.token_ids, request.output_tokens)
        if self._guesser and request.decoding.needs:
            msg = "llamacpp: expected greedy decoding beside draft or lookup, got another; leave one of them out"
            raise EngineError(msg)
        if not self._free:
            return False
        self._running.append(
            _Running(
                id=request.id,
                sequence=self._free.pop(0),
                prompt=as_ids(request.token_ids),
                left=request.output_tokens,
                text=list(request.token_ids) if self._guesser else [],
                end_ids=request.decoding.end_ids,
                choose=self._context.choice_for(request.decoding),
                stays=stays,
            )
        )
        return True

    def step(self) -> list[tuple[str, int]]:
        """Decode one batch and return the new (request id, token id) pairs.

        Every request that generates gives one token first, so none of them waits for another's prompt; what is
        left of n_batch goes to the prompts, oldest first. A step that only carries the middle of a long prompt
        returns no pairs although something is in flight, so such steps are run until there is one. Where guesses
        gave a request several tokens, each of the next steps hands out one at once, before anything is computed.
        """
        while self._running:
            if pairs := self._hand_out():
                return pairs
            self._advance()
        return []

    def clear(self) -> None:
        """Forget all requests; the caller empties the cache."""
        if self._guesser:
            for running in self._running:
                self._guesser.forget(running.sequence)
        self._running.clear()
        self._free = list(range(self._max_sequences))
        self.speculation = Speculation()

    def _hand_out(self) -> list[tuple[str, int]]:
        pairs = []
        for running in list(self._running):
            if running.held:
                pairs.append((running.id, running.held.popleft()))
                if running.left == 0 and not running.held and not running.stays:
                    self._leave(running)
        return pairs

    def _advance(self) -> None:
        if self._guesser:
            self._guess(self._guesser)
        batch = self._context.batch
        answering: list[_Running] = []
        end = 0
        for running in self._running:
            if running.generates:
                start = end
                end = batch.put(start, (running.token, *running.guesses), running.position, running.sequence)
                batch.outputs[start:end] = 1
                answering.append(running)
        for running in self._running:
            rest = running.prompt[running.position : running.position + batch.capacity - end]
            if len(rest) == 0:
                continue
            end = batch.put(end, rest, running.position, running.sequence)
            running.position += len(rest)
            if running.generates:
                batch.outputs[end - 1] = 1
                answering.append(running)
        self._context.run(end)
        if not answering:
            return
        rows = sum(1 + len(running.guesses) for running in answering)
        logits = self._context.logits(rows)  # (rows, vocabulary)
        tokens: list[int] = logits.argmax(axis=1).tolist()  # (rows,)
        start = 0
        for running in answering:
            stop = start + 1 + len(running.guesses)
            if running.choose is not None:
                tokens[start] = running.choose(logits[start])
            self._take_in(running, tokens[start:stop])
            start = stop

    def _guess(self, guesser: Guesser) -> None:
        asking = [running for running in self._running if running.generates]
        wishes = [Wish(each.sequence, each.text, max(0, min(self._draft_tokens, each.left - 1))) for each in asking]
        for running, guesses in zip(asking, guesser.guess(wishes), strict=True):
            running.guesses = guesses

    def _take_in(self, running: _Running, chosen: list[int]) -> None:
        """Keep what was chosen after its last token, and after guesses as long as those are what was chosen."""
        right = 0
        while right < len(running.guesses) and running.guesses[right] == chosen[right]:
            right += 1
        new = chosen[: right + 1]
        # The prompt is in the cache and counted; after it as many stay there as are new.
        if running.answered:
            running.position += len(new)
            self.speculation.guessed += len(running.guesses)
            self.speculation.accepted += right
            self.speculation.steps += 1
            self.speculation.tokens += len(new)
        if right < len(running.guesses):
            cut(self._context, running.sequence, running.position)
        running.answered = True
        running.guesses = []
        running.token = new[-1]
        running.left = 0 if running.token in running.end_ids else max(0, running.left - len(new))
        running.held.extend(new)
        if self._guesser:
            running.text += new

    def _leave(self, running: _Running) -> None:
        """Empty the request's sequence and make it free again."""
        lib.llama_memory_seq_rm(self._context.memory, running.sequence, -1, -1)
        if self._guesser:
            self._guesser.forget(running.sequence)
        self._running.remove(running)
        self._free.append(running.sequence)
        self._free.sort()
