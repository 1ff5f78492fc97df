"""Steps of a few sequences: one token of each of up to 8, by the kernels of `decode.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .stream import launch_of

if TYPE_CHECKING:
    from .batching import Piece
    from .decode import DecodeBuffers, DecodeStep

NOBODY = (-1, -1)


class NarrowSteps:
    """Launches the decode step that fits, and knows who is seated in it; a sequence sits at its block table's row.

    A seated sequence goes on from step to step on the device. The host brings a token only to those that arrive.

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
        self._seated: dict[int, tuple[int, int]] = {}  # by row: slot, position of the next token

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
            self._seated.get(row) == (piece.slot, piece.start) for row, piece in zip(rows, pieces, strict=True)
        )

    def enqueue(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Callable[[], list[int]]:
        """Enqueue one step; return what waits for its ids.

        A sequence that is not seated where it should be takes its seat, for which nothing of its row may be under way.

        Args:
            pieces: of one token.
            rows: of the block tables, for each piece; below `most`.
        """
        for row in self._seated.keys() - set(rows):
            self._leave(row)
        size = self.rows_for(max(rows) + 1)
        arriving = []
        for row, piece in zip(rows, pieces, strict=True):
            if self._seated.get(row) != (piece.slot, piece.start):
                self._steps[size].seat(row, piece.start, int(piece.ids[0]))
                arriving.append(row)
            self._seated[row] = (piece.slot, piece.start + 1)
        self._launches[size]()
        return partial(self._wait, list(rows), arriving)

    def vacate(self, row: int) -> None:
        """Forget who sits at a row: the next sequence there may have the same slot and be as long."""
        if row in self._seated:
            self._seated[row] = NOBODY

    def forget(self) -> None:
        """Let all sequences go; what they have enqueued is done."""
        for row in list(self._seated):
            self._leave(row)

    def _wait(self, rows: Sequence[int], arriving: Sequence[int]) -> list[int]:
        for row in arriving:
            self._ring.wait(row)  # the token that it came with
        return [self._ring.wait(row) for row in rows]

    def _leave(self, row: int) -> None:
        del self._seated[row]
        self._steps[self.most].end(row)
