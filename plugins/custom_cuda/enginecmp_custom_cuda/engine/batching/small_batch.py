"""Steps of a few sequences: one token of each of up to 8, by the kernels of `decode.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..decode.stream import launch_of

if TYPE_CHECKING:
    from ..decode.step import DecodeBuffers, DecodeStep
    from .scheduler import Piece

NOBODY = (-1, -1)


class SmallBatchSteps:
    """Launches the decode step that fits, and knows which sequence is bound to which slot.

    The slot is the sequence's row of the block tables.

    A bound sequence goes on from step to step on the device. The host brings a token only to those that arrive.

    Args:
        steps: by batch size, all on `buffers`.
        buffers: of the steps.
        graphs: launch a step as one graph.

    Attributes:
        most: sequences.
    """

    def __init__(self, steps: dict[int, DecodeStep], buffers: DecodeBuffers, *, graphs: bool) -> None:
        self._steps = dict(sorted(steps.items()))
        self._launches = {size: launch_of(step, graph=graphs) for size, step in self._steps.items()}
        self._ring = buffers.ring
        self.most = max(steps)
        self._bound: dict[int, tuple[int, int]] = {}  # by row: slot, position of the next token

    def rows_for(self, sequences: int) -> int:
        """Return how many rows the smallest step for so many sequences computes."""
        return next(size for size in self._steps if size >= sequences)

    def follows(self, pieces: Sequence[Piece], rows: Sequence[int]) -> bool:
        """Return whether the next step, of these at most `most` sequences, needs nothing of the host.

        Args:
            pieces: of one token.
            rows: of the block tables, for each piece.
        """
        return max(rows) < self.rows_for(len(rows)) and all(
            self._bound.get(row) == (piece.slot, piece.start) for row, piece in zip(rows, pieces, strict=True)
        )

    def enqueue(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Callable[[], list[int]]:
        """Enqueue one step; return what waits for its ids.

        A sequence that is not bound where it should be is bound now, for which nothing of its row may be under way.

        Args:
            pieces: of one token.
            rows: of the block tables, for each piece; below `most`.
        """
        for row in self._bound.keys() - set(rows):
            self._leave(row)
        size = self.rows_for(max(rows) + 1)
        arriving = []
        for row, piece in zip(rows, pieces, strict=True):
            if self._bound.get(row) != (piece.slot, piece.start):
                self._steps[size].bind(row, piece.start, int(piece.ids[0]))
                arriving.append(row)
            self._bound[row] = (piece.slot, piece.start + 1)
        self._launches[size]()
        return partial(self._wait, list(rows), arriving)

    def vacate(self, row: int) -> None:
        """Forget who sits at a row: the next sequence there may have the same slot and be as long."""
        if row in self._bound:
            self._bound[row] = NOBODY

    def forget(self) -> None:
        """Let all sequences go; what they have enqueued is done."""
        for row in list(self._bound):
            self._leave(row)

    def _wait(self, rows: Sequence[int], arriving: Sequence[int]) -> list[int]:
        for row in arriving:
            self._ring.wait(row)  # the token that it came with
        return [self._ring.wait(row) for row in rows]

    def _leave(self, row: int) -> None:
        del self._bound[row]
        self._steps[self.most].end(row)
