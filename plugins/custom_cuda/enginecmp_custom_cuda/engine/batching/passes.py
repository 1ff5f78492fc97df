"""Passes of the device for many sequences at once: what `batching` asks for, computed by the kernels that fit.

One token of each of up to 8 sequences is a decode step (`small_batch.py`), of each of more a large-batch step
(`large_batch.py`). Parts of prompts, and tokens of those that generate beside them, go through the kernels of prompts;
the residuals whose next id is wanted go through the LM head together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..memory.pages import Cache
    from ..prefill.prefill import Prefill
    from ..sampling.lm_head import LMHead
    from .large_batch import LargeBatchSteps
    from .scheduler import Piece
    from .small_batch import SmallBatchSteps


class Passes:
    """Computes the passes of continuous batching; a `batching.Runner`.

    A sequence keeps its slot, which the scheduler numbers, but not its row of the block tables: where few sequences are
    left in high rows they move down, because a decode step of batch B computes rows 0 to B - 1.

    Args:
        cache: keys and values.
        prefill: for passes that are no steps.
        lm_head: for their ids.
        small: steps of a few sequences.
        large: steps of all sequences that there can be.
    """

    def __init__(
        self, cache: Cache, prefill: Prefill, lm_head: LMHead, small: SmallBatchSteps, large: LargeBatchSteps
    ) -> None:
        self._cache = cache
        self._prefill = prefill
        self._lm_head = lm_head
        self._small = small
        self._large = large
        self._rows: dict[int, int] = {}  # by slot
        self._promised: dict[int, int] = {}  # tokens, by slot
        self._free = list(range(len(cache.pages.table)))

    def promise(self, slot: int, tokens: int) -> bool:
        """Set aside room for a sequence of so many tokens; False where there is none now."""
        row = self._free[0]
        if not self._cache.pages.promise(row, tokens):
            return False
        self._rows[slot] = self._free.pop(0)
        self._promised[slot] = tokens
        return True

    def release(self, slot: int) -> None:
        """Forget the sequence in a slot."""
        row = self._rows.pop(slot)
        del self._promised[slot]
        self._small.vacate(row)
        self._large.vacate(slot)
        self._cache.pages.release(row)
        self._free.append(row)
        self._free.sort()

    def follows(self, pieces: Sequence[Piece]) -> bool:
        """Return whether a pass of awaited ids can be enqueued behind the last pass.

        It can where the same sequences go on, or some of them, in the same kernels and the same rows.
        """
        return self._steps_of(pieces).follows(pieces, self._rows_of(pieces))

    def enqueue(self, pieces: Sequence[Piece]) -> Callable[[], list[int]]:
        """Begin a pass behind those that are under way; return what waits for the ids of the pieces that want one.

        Args:
            pieces: each of another sequence; with awaited ids only where they follow.
        """
        for piece in pieces:
            if piece.start == 0:
                # All pages at once: nobody else can have them, and the host waits for the copy of a block table.
                self._cache.grow(self._rows[piece.slot], self._promised[piece.slot])
        if not all(len(piece.ids) == 1 and piece.wants_id for piece in pieces):
            return self._mixed(pieces)
        steps = self._steps_of(pieces)
        if steps is self._small:
            self._move_down(pieces)
        return steps.enqueue(pieces, self._rows_of(pieces))

    def forget(self) -> None:
        """Take every sequence out of the steps; what they have enqueued is done."""
        self._small.forget()
        self._large.forget()

    def _steps_of(self, pieces: Sequence[Piece]) -> SmallBatchSteps | LargeBatchSteps:
        return self._small if len(pieces) <= self._small.most else self._large

    def _rows_of(self, pieces: Sequence[Piece]) -> list[int]:
        return [self._rows[piece.slot] for piece in pieces]

    def _mixed(self, pieces: Sequence[Piece]) -> Callable[[], list[int]]:
        """Any tokens of any sequences."""
        ids = np.concatenate([piece.ids for piece in pieces])
        positions = np.concatenate([np.arange(piece.start, piece.start + len(piece.ids)) for piece in pieces])
        rows = np.repeat(self._rows_of(pieces), [len(piece.ids) for piece in pieces])
        ends = np.cumsum([len(piece.ids) for piece in pieces]) - 1
        wanted = [int(end) for end, piece in zip(ends, pieces, strict=True) if piece.wants_id]
        self._prefill.enqueue(ids, positions, rows)
        if wanted:
            self._lm_head.launch(self._lm_head.gather(wanted), len(wanted))
        return partial(self._lm_head.ids, len(wanted))

    def _move_down(self, pieces: Sequence[Piece]) -> None:
        """Move sequences of a decode step out of rows that a smaller step would not compute."""
        batch = self._small.rows_for(len(pieces))
        for piece in pieces:
            row = self._rows[piece.slot]
            if row < batch:
                continue
            if self._free and self._free[0] < batch:
                target = self._free[0]
                self._free[0] = row
                self._free.sort()
            else:
                # A prompt that waits in a low row; its tokens do not mind where their table is.
                moving = {each.slot for each in pieces}
                other, target = next(
                    (slot, low) for slot, low in self._rows.items() if low < batch and slot not in moving
                )
                self._rows[other] = row
            self._cache.swap(row, target)
            self._rows[piece.slot] = target
