"""Continuous batching: a scheduler over llama.cpp's sequences, one llama_decode a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

from enginecmp import Request

from .native import as_ids, lib

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .session import Session


class _Running(msgspec.Struct):
    """One request in flight.

    Attributes:
        id: of the request.
        sequence: its place in the KV cache.
        prompt: int32, (T,).
        left: tokens still to generate.
        position: tokens in the cache; below T the prompt is not through yet.
        token: the last one generated.
    """

    id: str
    sequence: int
    prompt: NDArray[np.int32]
    left: int
    position: int = 0
    token: int = 0


class Batching:
    """Admits up to `max_sequences` requests and advances them together.

    Args:
        session: whose batch and context are used.
        max_sequences: most requests at once.
    """

    def __init__(self, session: Session, max_sequences: int) -> None:
        self._session = session
        self._max_sequences = max_sequences
        self._running: list[_Running] = []
        self._free = list(range(max_sequences))

    def submit(self, request: Request) -> bool:
        """Admit a request if a sequence is free.

        Raises:
            ContextOverflow: it can never fit.
            EngineError: its prompt is empty.
        """
        self._session.check_room(request.token_ids, request.output_tokens)
        if not self._free:
            return False
        prompt = as_ids(request.token_ids)
        self._running.append(
            _Running(id=request.id, sequence=self._free.pop(0), prompt=prompt, left=request.output_tokens)
        )
        return True

    def step(self) -> list[tuple[str, int]]:
        """Decode one batch and return the new (request id, token id) pairs.

        Every request that generates gives one token first, so none of them waits for another's prompt; what is
        left of n_batch goes to the prompts, oldest first. A step that only carries the middle of a long prompt
        returns no pairs although something is in flight, so such steps are run until there is one.
        """
        while self._running:
            if pairs := self._advance():
                return pairs
        return []

    def clear(self) -> None:
        """Forget all requests; the caller empties the cache."""
        self._running.clear()
        self._free = list(range(self._max_sequences))

    def _advance(self) -> list[tuple[str, int]]:
        batch = self._session.batch
        answering: list[_Running] = []
        end = 0
        for running in self._running:
            if running.position >= len(running.prompt):
                end = batch.put(end, (running.token,), running.position, running.sequence)
                batch.outputs[end - 1] = 1
                running.position += 1
                answering.append(running)
        for running in self._running:
            rest = running.prompt[running.position : running.position + batch.capacity - end]
            if len(rest) == 0:
                continue
            end = batch.put(end, rest, running.position, running.sequence)
            running.position += len(rest)
            if running.position == len(running.prompt):
                batch.outputs[end - 1] = 1
                answering.append(running)
        self._session.run(end)
        if not answering:
            return []
        tokens = self._session.logits(len(answering)).argmax(axis=1)  # (requests,)
        pairs = []
        for running, token in zip(answering, tokens.tolist(), strict=True):
            running.token = token
            running.left -= 1
            pairs.append((running.id, token))
            if running.left == 0:
                self._leave(running)
        return pairs

    def _leave(self, running: _Running) -> None:
        """Empty the request's sequence and make it free again."""
        lib.llama_memory_seq_rm(self._session.memory, running.sequence, -1, -1)
        self._running.remove(running)
        self._free.append(running.sequence)
        self._free.sort()
