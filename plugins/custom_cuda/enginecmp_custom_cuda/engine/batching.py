"""Continuous batching: which tokens of which sequences the device computes next.

A pass of the device is a list of pieces, each some neighbouring tokens of one sequence: one token of everything that
generates, and a bounded part of the prompts that wait. How a pass is computed is the runner's business, so this module
knows no device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np

from enginecmp import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Piece(NamedTuple):
    """Neighbouring tokens of one sequence.

    Attributes:
        slot: of the sequence.
        ids: int32, (n,), n >= 1.
        start: position of the first.
        answers: whether the id after the last one is wanted.
    """

    slot: int
    ids: NDArray[np.int32]
    start: int
    answers: bool


class Runner(Protocol):
    """Computes passes. Slots are numbered from 0 and hold one sequence each."""

    def promise(self, slot: int, tokens: int) -> bool:
        """Set aside room for a sequence of so many tokens; False where there is none now."""
        ...

    def release(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        ...

    def run(self, pieces: Sequence[Piece]) -> list[int]:
        """Compute one pass; return the most likely next id of every piece that answers, in order, the device done."""
        ...


class _Running(msgspec.Struct):
    """One request in flight.

    Attributes:
        id: of the request.
        slot: where its keys and values are.
        prompt: int32, (T,).
        left: tokens still to generate.
        position: tokens in the cache; below T the prompt is not through yet.
        token: the last one generated.
    """

    id: str
    slot: int
    prompt: NDArray[np.int32]
    left: int
    position: int = 0
    token: int = 0


class Batching:
    """Admits requests and advances them together.

    Args:
        runner: computes.
        max_sequences: most requests at once.
        chunk_tokens: most tokens of a pass.
        check_room: raises for a request that can never fit.
    """

    def __init__(
        self,
        runner: Runner,
        max_sequences: int,
        chunk_tokens: int,
        check_room: Callable[[Sequence[int], int], None],
    ) -> None:
        self._runner = runner
        self._max_sequences = max_sequences
        self._check_room = check_room
        self._running: list[_Running] = []
        self._free = list(range(max_sequences))
        self._chunk = chunk_tokens
        # Prompts beside running sequences make those wait for the whole pass, so they get half as much of it.
        self._chunk_beside = max(1, chunk_tokens // 2)

    @property
    def tokens(self) -> int:
        """Tokens in the cache, of all requests in flight."""
        return sum(running.position for running in self._running)

    def submit(self, request: Request) -> bool:
        """Take a request in if there is a slot, and room for all of its tokens.

        Raises:
            ContextOverflow: it can never fit.
            EngineError: its prompt is empty or names ids that do not exist.
        """
        self._check_room(request.token_ids, request.output_tokens)
        if not self._free:
            return False
        slot = self._free[0]
        if not self._runner.promise(slot, len(request.token_ids) + request.output_tokens - 1):
            return False
        self._free.pop(0)
        prompt = np.asarray(request.token_ids, np.int32)
        self._running.append(_Running(id=request.id, slot=slot, prompt=prompt, left=request.output_tokens))
        return True

    def step(self) -> list[tuple[str, int]]:
        """Compute passes until there are new tokens, and return their (request id, token id) pairs.

        Only a pass that carries nothing but the middle of a long prompt gives none.
        """
        while self._running:
            if pairs := self._advance():
                return pairs
        return []

    def clear(self) -> None:
        """Forget all requests."""
        for running in self._running:
            self._runner.release(running.slot)
        self._running.clear()
        self._free = list(range(self._max_sequences))

    def _advance(self) -> list[tuple[str, int]]:
        pieces: list[Piece] = []
        answering: list[_Running] = []
        advanced: list[tuple[_Running, int]] = []
        for running in self._running:
            if running.position >= len(running.prompt):
                pieces.append(Piece(running.slot, np.array([running.token], np.int32), running.position, True))
                answering.append(running)
                advanced.append((running, 1))
        budget = self._chunk_beside if pieces else self._chunk
        budget = min(budget, max(1, self._chunk - len(pieces)))
        for running in self._running:  # oldest first
            part = running.prompt[running.position : running.position + budget]
            if running.position >= len(running.prompt) or not len(part):
                continue
            budget -= len(part)
            last = running.position + len(part) == len(running.prompt)
            pieces.append(Piece(running.slot, part, running.position, last))
            advanced.append((running, len(part)))
            if last:
                answering.append(running)
        tokens = self._runner.run(pieces)
        for running, count in advanced:
            running.position += count
        pairs = []
        for running, token in zip(answering, tokens, strict=True):
            running.token = token
            running.left -= 1
            pairs.append((running.id, token))
            if running.left == 0:
                self._leave(running)
        return pairs

    def _leave(self, running: _Running) -> None:
        self._runner.release(running.slot)
        self._running.remove(running)
        self._free.append(running.slot)
        self._free.sort()
