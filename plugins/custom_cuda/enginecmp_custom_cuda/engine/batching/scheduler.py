"""Continuous batching: which tokens of which sequences the device computes next.

A pass of the device is a list of pieces, each some neighbouring tokens of one sequence: one token of everything that
generates, and a bounded part of the prompts that wait. How a pass is computed is the runner's business, so this module
knows no device.

While the same sequences generate, passes are enqueued before the ids of those before them have come back: only the
device needs them. Nothing is enqueued past a prompt that waits. So a request that is submitted waits for the passes
that are under way then, fewer than `ahead`, and one that takes the place of another for one pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec
import numpy as np

from enginecmp import Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

AWAITED = -1
"""In an id's place: the id that the pass before gives the sequence."""

AROUND_END = 2
"""Most passes under way where a sequence ends in one of them. With one the device would wait for the host at every
end; with more the slot that becomes free would stand empty for longer."""


class Piece(NamedTuple):
    """Neighbouring tokens of one sequence.

    Attributes:
        slot: of the sequence.
        ids: int32, (n,), n >= 1; or `AWAITED` alone.
        start: position of the first.
        wants_id: whether the id after the last one is wanted.
    """

    slot: int
    ids: NDArray[np.int32]
    start: int
    wants_id: bool


class Runner(Protocol):
    """Computes passes. Slots are numbered from 0 and hold one sequence each."""

    def promise(self, slot: int, tokens: int) -> bool:
        """Set aside room for a sequence of so many tokens; False where there is none now."""
        ...

    def release(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        ...

    def follows(self, pieces: Sequence[Piece]) -> bool:
        """Return whether a pass of awaited ids can be enqueued behind the last pass."""
        ...

    def enqueue(self, pieces: Sequence[Piece]) -> Callable[[], list[int]]:
        """Begin a pass behind those that are under way.

        Args:
            pieces: each of another sequence; with awaited ids only where they follow.

        Returns:
            What waits for the most likely next id of every piece that wants it, in order. It is called once, in the
            order of the passes.
        """
        ...


class _Running(msgspec.Struct):
    """One request in flight.

    Attributes:
        id: of the request.
        slot: where its keys and values are.
        prompt: int32, (T,).
        left: tokens still to hand out, never 0.
        awaited: how many of them are under way.
        position: tokens in the cache or on their way there.
        token: the last one handed out.
    """

    id: str
    slot: int
    prompt: NDArray[np.int32]
    left: int
    awaited: int = 0
    position: int = 0
    token: int = 0

    @property
    def generates(self) -> bool:
        """Whether nothing of its prompt waits."""
        return self.position >= len(self.prompt)

    @property
    def ends(self) -> bool:
        """Whether its last token is under way."""
        return self.awaited == self.left


class _Pass(NamedTuple):
    """A pass under way: which requests get an id, and what waits for the ids."""

    wanted: list[_Running]
    wait: Callable[[], list[int]]


class Batching:
    """Admits requests and advances them together.

    Args:
        runner: computes.
        max_sequences: most requests at once.
        chunk_tokens: most tokens of a pass.
        check_room: raises for a request that can never fit.
        ahead: most passes under way.
    """

    def __init__(
        self,
        runner: Runner,
        max_sequences: int,
        chunk_tokens: int,
        check_room: Callable[[Sequence[int], int], None],
        ahead: int,
    ) -> None:
        self._runner = runner
        self._max_sequences = max_sequences
        self._check_room = check_room
        self._ahead = ahead
        self._running: list[_Running] = []
        self._under_way: deque[_Pass] = deque()
        self._free = list(range(max_sequences))
        self._chunk = chunk_tokens
        # Prompts beside running sequences make those wait for the whole pass, so they get half as much of it.
        self._chunk_beside = max(1, chunk_tokens // 2)

    @property
    def tokens(self) -> int:
        """Tokens in the cache or on their way there, of all requests in flight."""
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
        """Wait for passes until there are new tokens, and return their (request id, token id) pairs.

        Only a pass that carries nothing but the middle of a long prompt gives none. Up to `ahead` - 1 later passes are
        under way on return.
        """
        while self._running:
            self._enqueue_ahead()
            if pairs := self._take():
                return pairs
        return []

    def clear(self) -> None:
        """Forget all requests and what is under way for them, which has ended."""
        for running in self._running:
            self._runner.release(running.slot)
        self._running.clear()
        self._under_way.clear()
        self._free = list(range(self._max_sequences))

    def _enqueue_ahead(self) -> None:
        if not self._under_way:
            tokens = self._tokens()
            self._enqueue(tokens + self._prompts(len(tokens)))
        while len(self._under_way) < self._most_under_way():
            tokens = self._tokens()
            if not tokens or not self._runner.follows([piece for _, piece in tokens]):
                return
            self._enqueue(tokens)

    def _most_under_way(self) -> int:
        if not all(running.generates for running in self._running):
            return 0  # whoever waits goes on with the next pass
        return min(self._ahead, AROUND_END) if any(running.ends for running in self._running) else self._ahead

    def _tokens(self) -> list[tuple[_Running, Piece]]:
        """Return the next token of everything that generates."""
        return [
            (each, Piece(each.slot, np.array([AWAITED if each.awaited else each.token], np.int32), each.position, True))
            for each in self._running
            if each.generates and not each.ends
        ]

    def _prompts(self, beside: int) -> list[tuple[_Running, Piece]]:
        """Return what a pass takes of the prompts that wait, oldest first, beside so many tokens of others."""
        budget = min(self._chunk_beside, max(1, self._chunk - beside)) if beside else self._chunk
        found = []
        for running in self._running:
            part = running.prompt[running.position : running.position + budget]
            if not len(part):
                continue
            budget -= len(part)
            last = running.position + len(part) == len(running.prompt)
            found.append((running, Piece(running.slot, part, running.position, last)))
        return found

    def _enqueue(self, parts: Sequence[tuple[_Running, Piece]]) -> None:
        wait = self._runner.enqueue([piece for _, piece in parts])
        for running, piece in parts:
            running.position += len(piece.ids)
            running.awaited += piece.wants_id
        self._under_way.append(_Pass([running for running, piece in parts if piece.wants_id], wait))

    def _take(self) -> list[tuple[str, int]]:
        """Wait for the oldest pass under way."""
        wanted, wait = self._under_way.popleft()
        pairs = []
        for running, token in zip(wanted, wait(), strict=True):
            running.token = token
            running.awaited -= 1
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
