"""Steps of many sequences: one token of each through the kernels of prompts, head and choice, as one graph.

As after a decode step, `next` hands the ids out through a ring and leaves what the following step begins with: the ids
themselves, and positions that are one further. So these steps follow one another without the host, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...device import build
from ..decode.geometry import THREADS
from ..decode.step import defines
from ..memory import params
from ..memory.ring import Ring
from ..prefill.gemm import round_up
from ..prefill.tokens import bucket

if TYPE_CHECKING:
    from ...device import Device
    from ...device.graph import Graph
    from ...device.module import Launch
    from ...weights.model import DeviceModel
    from ..decode.buffers import DecodeSettings
    from ..prefill.prefill import Prefill
    from ..sampling.lm_head import LMHead
    from .scheduler import Piece

LARGE_BATCH_MULTIPLE = 16
"""Steps are computed for a multiple of so many sequences; the rest is empty."""

EMPTY = -1
"""Position of a place without a sequence."""


class Binding(NamedTuple):
    """Where a sequence sits: its place in the step, the position of its next token, its row of the block tables."""

    place: int
    position: int
    row: int


class LargeBatchSteps:
    """Launches steps of up to `most` sequences, and knows which sequence is bound to which place.

    Args:
        device: where.
        model: its weights there.
        prefill: computes the layers.
        lm_head: chooses.
        settings: of the decode steps beside these.
        sequences: most at once.
        graphs: launch a step as one graph.

    Attributes:
        most: sequences, empty ones among them.
        position: address of int32 (most,), by place.
    """

    def __init__(
        self,
        device: Device,
        model: DeviceModel,
        prefill: Prefill,
        lm_head: LMHead,
        settings: DecodeSettings,
        sequences: int,
        *,
        graphs: bool,
    ) -> None:
        self.most = round_up(sequences, LARGE_BATCH_MULTIPLE)
        self._device = device
        self._model = model
        self._prefill = prefill
        self._lm_head = lm_head
        self._graphs = graphs
        self._state = device.allocate(
            4 * self.most * 4, "the state of large-batch steps"
        )  # (ids, positions, rows, counts)
        self._ids, self.position, self._rows, self._counts = (
            self._state.address + each * self.most * 4 for each in range(4)
        )
        self._ring = Ring(device, settings.ring_slots, self.most)
        kind, head_dim = model.embedding.kind, model.config.head_dim
        self._module = build(device, "decode", defines(kind, settings.exact, settings.kv, head_dim, 1))
        self._launches: dict[int, Callable[[], None]] = {}
        self._size = 0  # places of the last step
        self._bound: dict[int, Binding] = {}  # by slot

    def follows(self, pieces: Sequence[Piece], rows: Sequence[int]) -> bool:
        """Return whether the next step, of these sequences, needs nothing of the host.

        Args:
            pieces: of one token.
            rows: of the block tables, for each piece.
        """
        return bucket(len(pieces), self.most) == self._size and all(
            piece.slot in self._bound and self._bound[piece.slot][1:] == (piece.start, row)
            for row, piece in zip(rows, pieces, strict=True)
        )

    def enqueue(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Callable[[], list[int]]:
        """Enqueue one step; return what waits for its ids.

        Where it does not follow, all take new places, for which no large-batch step may be under way.

        Args:
            pieces: of one token.
            rows: of the block tables, for each piece.
        """
        if self.follows(pieces, rows):
            for slot in self._bound.keys() - {piece.slot for piece in pieces}:
                self._device.fill(self.position + self._bound.pop(slot).place * 4, 4, 0xFF)
        else:
            self._bind(pieces, rows)
        places = [self._bound[piece.slot].place for piece in pieces]
        for place, row, piece in zip(places, rows, pieces, strict=True):
            self._bound[piece.slot] = Binding(place, piece.start + 1, row)
        self._launches[self._size]()
        return partial(self._wait, places)

    def vacate(self, slot: int) -> None:
        """Forget the sequence in a slot: the next one there may be as long."""
        if slot in self._bound:
            self._bound[slot] = self._bound[slot]._replace(position=EMPTY)

    def forget(self) -> None:
        """Let all sequences go; what they have enqueued is done."""
        self._bound.clear()
        self._size = 0

    def _bind(self, pieces: Sequence[Piece], rows: Sequence[int]) -> None:
        size = bucket(len(pieces), self.most)
        state = np.full((4, self.most), EMPTY, np.int32)
        state[3] = 0
        if size not in self._launches:
            self._device.upload(self._state.address, state)  # nobody moves while the launches are recorded
            self._launches[size] = self._recorded(size)
        self._bound.clear()
        for place, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            state[:3, place] = piece.ids[0], piece.start, row
            self._bound[piece.slot] = Binding(place, piece.start, row)
            self._ring.clear(place)
        self._device.upload(self._state.address, state)
        self._size = size

    def _recorded(self, size: int) -> Callable[[], None]:
        following = self._following(size)

        def launch() -> None:
            self._prefill.enqueue(self._ids, self.position, self._rows, size)
            self._lm_head.launch(self._prefill.hidden, size)
            following.launch()

        return recorded(self._device, launch).launch if self._graphs else launch

    def _following(self, size: int) -> Launch:
        """Return the launch that hands the ids out and moves everybody on by one position."""
        arguments = params.Next(
            table=params.matrix_of(self._model.embedding),
            active=self.position,
            best=self._lm_head.best,
            token=self._ids,
            position=self.position,
            count=self._counts,
            ring=self._ring.address,
            # The next step looks embeddings up by itself; the residuals of this one are not needed any more.
            x=self._prefill.hidden,
            ring_slots=self._ring.slots,
            ring_stride=self._ring.stride,
        )
        return self._device.prepare(self._module.kernel("next"), size, THREADS, 0, arguments)

    def _wait(self, places: Sequence[int]) -> list[int]:
        return [self._ring.wait(place) for place in places]


def recorded(device: Device, launch: Callable[[], None]) -> Graph:
    """Return a graph of what a function launches; it has run once, so that all is there that it needs."""
    launch()
    with device.capture() as capture:
        launch()
    return capture.graph
